package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafka"
	"github.com/orderflow-dev/orderflow/services/email"
	"github.com/orderflow-dev/orderflow/services/order"
	"github.com/orderflow-dev/orderflow/services/warehouse"
)

func newGroupsRebuild() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rebuild GROUP --as NAME",
		Short: "Make the effects again that one of our groups has lost",
		Long: `Runs the handlers of consumer group order, email or warehouse once more over all that Kafka keeps, in this process, under
another group name, which knows nothing of what was done. An effect that is missing is made again; one that is there is
recognised by its own row (an email by its order and kind, a shipment by its order, a saga by its id) and stays as it is. It is
for rows that were lost or that a bug never made, where a rewind would drop each message as a duplicate. The group itself
and its offsets are left alone, and its services should run: they send what is queued here.

What the group has parked or discarded is left to it, and so is what is still to come to it behind a held key; OPEN THERE counts
those of them that it has neither done nor discarded. An email that is made again may have been sent before
its row was lost, so the email service asks its providers first (--lookup-url); one without a look-up is sent it again, under
the same Message-ID. Messages older than 28 days are parked, never run.

NAME begins with the group's name and a dash. Under a new NAME everything is read from the beginning; with one that was
interrupted the same command goes on where it stopped. Without --yes it only prints the plan: the records to read in each
partition, up to its end as of now, and how many the group knows, estimated from the first 500 of a partition where there
are more.

Exit code 6: some are not made again, being parked under NAME or open in the group; the same command tries again what is held.
Exit code 124: nothing has moved for --timeout. The last lines say what is left and what to do.`,
		Example: "  orderflow groups rebuild email --as email-rebuild\n  orderflow groups rebuild warehouse --as warehouse-2026-01 --yes",
		Args:    cobra.ExactArgs(1),
		RunE:    rebuildGroup,
	}
	f := cmd.Flags()
	f.String("as", "", "the group name to work under: the group's, a dash and something new (required)")
	f.String("from", email.DefaultFrom, "group email: the sender, as its service has it; its domain is part of the Message-IDs")
	f.Duration("timeout", time.Minute, "give up when nothing has moved for this long")
	f.StringSlice("kafka", nil, "brokers as host:port (default: the running orderflow dev's)")
	addYesFlag(cmd)
	addDatabaseFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

// rebuild is one run of a group's handlers under another name.
type rebuild struct {
	cmd       *cobra.Command
	group, as string
	routes    []inbox.Route
	timeout   time.Duration
	client    *kgo.Client
	pool      *pgxpool.Pool
	moves     []kafka.Move // From the end, To where to begin
	made      made
}

// rebuildConns is for the consumer's four workers, its two drainers and what this command asks itself.
const rebuildConns = 8

func rebuildGroup(cmd *cobra.Command, args []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	r, err := rebuildFromFlags(cmd, args[0])
	if err != nil {
		return err
	}
	if r.client, err = newKafkaClient(cmd); err != nil {
		return err
	}
	defer r.client.Close()
	url, err := ownerURL(cmd)
	if err != nil {
		return err
	}
	if r.pool, err = openSchemaWith(cmd.Context(), url, schemaOf(r.group), rebuildConns); err != nil {
		return err
	}
	defer r.pool.Close()
	return ownerError(r.planAndRun(cmd.Context(), out))
}

func rebuildFromFlags(cmd *cobra.Command, group string) (*rebuild, error) {
	r := &rebuild{cmd: cmd, group: group, as: stringFlag(cmd, "as")}
	if !slices.Contains(event.Groups(), group) {
		return nil, usage("use "+strings.Join(event.Groups(), ", "), "group %q cannot be rebuilt", group)
	}
	if !strings.HasPrefix(r.as, group+"-") || r.as == group+"-" {
		return nil, usage("write --as "+group+"-rebuild; no other group has such a name",
			"--as must be %q and something new behind it, is %q", group+"-", r.as)
	}
	if r.timeout, _ = cmd.Flags().GetDuration("timeout"); r.timeout < time.Second {
		return nil, usage("", "--timeout must be at least 1s, is %v", r.timeout)
	}
	switch group {
	case event.GroupOrder:
		r.routes = order.Routes()
	case event.GroupWarehouse:
		r.routes = warehouse.Routes()
	case event.GroupEmail:
		var err error
		if r.routes, err = email.RebuildRoutes(stringFlag(cmd, "from")); err != nil {
			return nil, usage("", "--from: %w", err)
		}
	}
	return r, nil
}

func (r *rebuild) planAndRun(ctx context.Context, out *output) error {
	members, err := kafka.GroupMembers(ctx, r.client, r.as)
	if err != nil {
		return err
	}
	if len(members) > 0 {
		return fail(exitConflict, "wait for its end, or use another name; one that was killed goes with its session, 45s",
			"group %s is at work, with the members %s", r.as, strings.Join(members, ", "))
	}
	if r.moves, err = r.plan(ctx); err != nil {
		return err
	}
	docs, err := forecastReads(ctx, r.client, r.pool, r.group, r.moves)
	if err != nil {
		return err
	}
	yes, _ := r.cmd.Flags().GetBool("yes")
	if !yes || out.format == "table" {
		if err := list(out, readDocs(r.as, docs), readTable(docs)); err != nil {
			return err
		}
	}
	if !yes {
		r.cmd.PrintErrf("%d records would be handled again as group %s; --yes does it\n", r.records(), r.as)
		return nil
	}
	return r.run(ctx, out)
}

// plan finds what there is to read in the topics of the handlers: from what was committed under the name, or the first record
// kept, to the end as of now.
func (r *rebuild) plan(ctx context.Context) ([]kafka.Move, error) {
	var topics []string
	for _, rt := range r.routes {
		topics = append(topics, rt.Topic)
	}
	slices.Sort(topics)
	topics = slices.Compact(topics)
	committed, err := kafka.Committed(ctx, r.client, r.as)
	if err != nil {
		return nil, err
	}
	admin := kadm.NewClient(r.client)
	starts, err := admin.ListStartOffsets(ctx, topics...)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("look for the first records: %w", err)
	}
	ends, err := admin.ListEndOffsets(ctx, topics...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("look for the ends of the topics: %w", err)
	}
	var moves []kafka.Move
	for _, topic := range topics {
		for partition := range int32(len(ends[topic])) {
			start, _ := starts.Lookup(topic, partition)
			end, _ := ends.Lookup(topic, partition)
			from := start.Offset
			if o, ok := committed.Lookup(topic, partition); ok {
				from = max(from, o.At)
			}
			if from < end.Offset {
				moves = append(moves, kafka.Move{Topic: topic, Partition: partition, From: end.Offset, To: from})
			}
		}
	}
	return moves, nil
}

func (r *rebuild) records() (n int64) {
	for _, m := range r.moves {
		n += m.From - m.To
	}
	return n
}

// readDoc is what a rebuild reads of one partition, as JSON shows it.
type readDoc struct {
	Group     string `json:"group"`
	As        string `json:"as"`
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	From      int64  `json:"from"`
	End       int64  `json:"end"`
	Records   int64  `json:"records"`
	Sampled   int    `json:"sampled"`         // records that were looked at
	Known     int    `json:"known_in_sample"` // of them, those that the group has met
	Estimate  bool   `json:"known_estimated"` // not all were looked at
}

func readDocs(as string, moves []moveDoc) []readDoc {
	docs := make([]readDoc, len(moves))
	for i, m := range moves {
		docs[i] = readDoc{
			Group: m.Group, As: as, Topic: m.Topic, Partition: m.Partition, From: m.Target, End: m.Committed, Records: m.Again,
			Sampled: m.Sampled, Known: m.Duplicates, Estimate: m.Estimate,
		}
	}
	return docs
}

func readTable(docs []moveDoc) *table {
	t := &table{header: []string{"TOPIC", "PARTITION", "FROM", "END", "RECORDS", "KNOWN TO THE GROUP"}, empty: "nothing to read: there is no record behind what was read under this name"}
	for _, d := range docs {
		t.add(d.Topic, d.Partition, d.Target, d.Committed, d.Again, d.share())
	}
	return t
}
