package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/internal/kafka"
)

func newGroups() *cobra.Command {
	cmd := &cobra.Command{Use: "groups", Short: "Show where the consumer groups stand"}
	cmd.AddCommand(newGroupsList(), newGroupsDescribe())
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

type groupDoc struct {
	Name    string `json:"name"`
	State   string `json:"state"`
	Members int    `json:"members"`
	Topics  int    `json:"topics"`
	Lag     *int64 `json:"lag"` // null when the lag of a partition is unknown
}

func newGroupsList() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the consumer groups with their members and lag",
		Example: "  orderflow groups list\n  orderflow groups list --kafka broker-1:9092 -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, err := newOutput(cmd)
			if err != nil {
				return err
			}
			client, err := newKafkaClient(cmd)
			if err != nil {
				return err
			}
			defer client.Close()
			groups, err := kafka.Groups(cmd.Context(), client)
			if err != nil {
				return err
			}
			var docs []groupDoc
			t := &table{header: []string{"GROUP", "STATE", "MEMBERS", "TOPICS", "LAG"}, empty: "no consumer groups"}
			for _, g := range groups {
				doc := groupDoc{Name: g.Name, State: g.State, Members: len(g.Members), Topics: countTopics(g)}
				if lag, known := g.Lag(); known {
					doc.Lag = &lag
				}
				docs = append(docs, doc)
				t.add(g.Name, stateCell(g.State), doc.Members, doc.Topics, lagCell(doc.Lag))
			}
			return list(out, docs, t)
		},
	}
	addKafkaFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

func newGroupsDescribe() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "describe GROUP",
		Short: "Show a group partition by partition",
		Long: `Shows for each partition of a consumer group's topics who reads it, which offset is committed, where the partition ends,
and how many records lie between. "-" means that nothing was committed yet.`,
		Example: "  orderflow groups describe order",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			out, err := newOutput(cmd)
			if err != nil {
				return err
			}
			client, err := newKafkaClient(cmd)
			if err != nil {
				return err
			}
			defer client.Close()
			g, err := kafka.Describe(cmd.Context(), client, args[0])
			if errors.Is(err, kafka.ErrNoGroup) {
				return fail(exitNotFound, "`orderflow groups list` shows those that exist", "there is no consumer group %q", args[0])
			}
			if err != nil {
				return err
			}
			return printGroup(out, g)
		},
	}
	addKafkaFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

func printGroup(out *output, g kafka.Group) error {
	t := &table{header: []string{"TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "MEMBER"}}
	for _, p := range g.Partitions {
		t.add(p.Topic, p.Partition, offset(p.Committed), offset(p.End), lagCell(p.Lag), memberName(g, p.Member))
	}
	if out.format == "table" {
		lag, known := g.Lag()
		total := lagCell(&lag)
		if !known {
			total = lagCell(nil)
		}
		head := &table{}
		head.add(cell{"group", "dim"}, g.Name)
		head.add(cell{"state", "dim"}, stateCell(g.State))
		head.add(cell{"members", "dim"}, len(g.Members))
		head.add(cell{"lag", "dim"}, total)
		if err := out.table(head); err != nil {
			return err
		}
		fmt.Fprintln(out.w)
	}
	return one(out, g, t)
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
