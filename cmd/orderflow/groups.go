package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/internal/kafka"
)

func newGroups() *cobra.Command {
	cmd := &cobra.Command{Use: "groups", Short: "Show where the consumer groups stand, rewind and rebuild ours"}
	cmd.AddCommand(newGroupsList(), newGroupsDescribe(), newGroupsLag(), newGroupsWatch(), newGroupsRewind(), newGroupsRebuild())
	return cmd
}

func addKafkaFlag(cmd *cobra.Command) {
	cmd.Flags().StringSlice("kafka", nil, "brokers as host:port (default: the running orderflow dev's)")
	addDataDirFlag(cmd)
}

// newKafkaClient connects to the brokers that the flags name, or to the running development system's. The caller closes it.
func newKafkaClient(cmd *cobra.Command) (*kgo.Client, error) {
	brokers, err := cmd.Flags().GetStringSlice("kafka")
	if err != nil {
		return nil, err
	}
	if len(brokers) == 0 {
		ready, err := running(cmd, "--kafka HOST:PORT")
		if err != nil {
			return nil, err
		}
		brokers = strings.Split(ready.Kafka, ",")
	}
	client, err := kgo.NewClient(kafka.Options(brokers, nil)...)
	if err != nil {
		return nil, usage("write --kafka HOST:PORT[,HOST:PORT]", "brokers %q: %w", brokers, err)
	}
	if err := kafka.Ping(cmd.Context(), client, brokers); err != nil {
		client.Close()
		return nil, err
	}
	return client, nil
}

func newGroupsList() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the consumer groups with their members and lag",
		Long: `Lists every consumer group of the cluster. LAG counts the records that are written and not finished; AGE is how long the oldest
of them has been waiting. What is not known is never shown as 0; NOTE says why it is not known.`,
		Example: "  orderflow groups list\n  orderflow groups list --sample 2s\n  orderflow groups list --kafka broker-1:9092 -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withGroups(cmd, nil, func(out *output, looks []look) error {
				docs, t := groupTable(looks)
				return list(out, docs, t)
			})
		},
	}
	addSampleFlag(cmd)
	addKafkaFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

func newGroupsDescribe() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "describe GROUP",
		Short: "Show a group partition by partition",
		Long: `Shows for each partition of a consumer group's topics who reads it, which offset is committed, where the partition ends,
how many records lie between, and how long the oldest of them has been waiting. "-" means that nothing was committed yet:
the lag counts from the first record then. NOTE says why a number is not known.`,
		Example: "  orderflow groups describe order\n  orderflow groups describe order --sample 5s",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withGroups(cmd, args, func(out *output, looks []look) error { return printGroup(out, looks[0]) })
		},
	}
	addSampleFlag(cmd)
	addKafkaFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

func printGroup(out *output, l look) error {
	t := &table{header: []string{"TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "AGE", "MEMBER", "NOTE"}}
	for _, p := range l.Partitions {
		age, known := p.Age(l.At)
		t.add(p.Topic, p.Partition, offset(p.Committed), offset(p.End), lagCell(p.Lag), ageCell(age, known), memberName(l.Group, p.Member), cell{p.Error, "warn"})
	}
	doc := newGroupDoc(l)
	if out.format == "table" {
		head := &table{}
		head.add(cell{"group", "dim"}, l.Name)
		head.add(cell{"state", "dim"}, stateCell(l.State))
		head.add(cell{"members", "dim"}, len(l.Members))
		head.add(cell{"lag", "dim"}, totalLag(l.Group))
		head.add(cell{"age", "dim"}, totalAge(l.Group))
		if l.sampled {
			head.add(cell{"in", "dim"}, perSecond(doc.In)+"/s")
			head.add(cell{"out", "dim"}, perSecond(doc.Out)+"/s")
			head.add(cell{"trend", "dim"}, trendCell(doc))
		}
		if len(l.Partitions) == 0 {
			head.add(cell{"note", "dim"}, cell{strings.Join(doc.Unknown, "; "), "warn"})
		}
		if err := out.table(head); err != nil {
			return err
		}
		fmt.Fprintln(out.w)
	}
	return one(out, struct {
		kafka.Group
		In     *float64 `json:"in_per_second,omitempty"`
		Out    *float64 `json:"out_per_second,omitempty"`
		Drains *float64 `json:"drains_in_seconds,omitempty"`
	}{l.Group, doc.In, doc.Out, doc.Drains}, t)
}

func memberName(g kafka.Group, id string) string {
	for _, m := range g.Members {
		if m.ID == id && id != "" {
			return m.ClientID + "@" + strings.TrimPrefix(m.Host, "/")
		}
	}
	return "-"
}

func countTopics(g kafka.Group) int {
	topics := map[string]bool{}
	for _, p := range g.Partitions {
		topics[p.Topic] = true
	}
	return len(topics)
}

func stateCell(state string) cell {
	switch state {
	case "Stable":
		return cell{state, "good"}
	case "Empty", "Dead":
		return cell{state, "bad"}
	}
	return cell{state, "warn"}
}

func lagCell(lag *int64) cell {
	switch {
	case lag == nil:
		return cell{"unknown", "warn"}
	case *lag == 0:
		return cell{"0", "good"}
	}
	return cell{strconv.FormatInt(*lag, 10), "warn"}
}

func offset(n *int64) string {
	if n == nil {
		return "-"
	}
	return strconv.FormatInt(*n, 10)
}
