package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafka"
)

func newGroupsRewind() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rewind GROUP --to WHEN",
		Short: "Have one of our groups read again from an earlier offset",
		Long: `Sets the offsets of consumer group order, email or warehouse back, while its consumers run. They know each message they
have processed, so what they read again is dropped as a duplicate: a rewind does nothing twice, and does what was lost, such
as after a restore of the database. Messages older than 28 days are not remembered; they are parked, never run.

WHEN is how long ago (-15m), a time (2006-01-02T15:04:05Z), both of when records were written, or earliest, or with --topic
and --partition an offset. An offset is never moved forward.

Without --yes it only prints the plan: for each partition the committed offset, the one to begin at, how many records are
read again, and how many of them are duplicates, estimated from the first 500 of a partition where there are more.

With --yes it pauses the group through the database: its consumers finish what they have started, commit it and leave the
group, because Kafka takes no offsets from outside while a group has members. Then it writes a file by which --undo puts the
offsets back, sets them, reads them back and resumes the group. When a step fails the group is resumed, and it says what is
true now. If the command itself is killed the group goes on after --lease.`,
		Example: `  orderflow groups rewind email --to -15m
  orderflow groups rewind order --to 2026-01-02T15:00:00Z --topic orders --yes
  orderflow groups rewind --undo orderflow-undo-order-20260102T150405Z.json --yes`,
		Args: cobra.MaximumNArgs(1),
		RunE: rewindGroup,
	}
	f := cmd.Flags()
	f.String("to", "", "where to begin: -15m, 2006-01-02T15:04:05Z, earliest or an offset (required, unless --undo)")
	f.String("topic", "", "only this topic")
	f.Int32("partition", -1, "only this partition of --topic; -1: all")
	f.String("undo", "", "put back the offsets of this file, which an earlier rewind has written")
	f.String("undo-file", "", "where to write the file for --undo (default: orderflow-undo-GROUP-TIME.json in this folder)")
	f.Duration("wait", 90*time.Second, "how long to wait for the members to leave: more than the session timeout of one that was killed, 45s")
	f.Duration("lease", 30*time.Second, "after this long without a sign of life from this command its pause ends")
	f.StringSlice("kafka", nil, "brokers as host:port (default: the running orderflow dev's)")
	addYesFlag(cmd)
	addDatabaseFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

// rewind is one rewind, or undo, of a group.
type rewind struct {
	cmd     *cobra.Command
	group   string
	to      kafka.RewindTo
	undo    *undoFile // nil: a rewind
	client  *kgo.Client
	pool    *pgxpool.Pool
	cluster string
}

// moveDoc is the plan for one partition as JSON shows it.
type moveDoc struct {
	Group      string `json:"group"`
	Topic      string `json:"topic"`
	Partition  int32  `json:"partition"`
	Committed  int64  `json:"committed"`
	Target     int64  `json:"target"`
	Again      int64  `json:"records_again"`
	Sampled    int    `json:"sampled"`              // records that were looked at
	Duplicates int    `json:"duplicates_in_sample"` // of them, known as processed
	Estimate   bool   `json:"duplicates_estimated"` // not all were looked at
}

func rewindGroup(cmd *cobra.Command, args []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	r, err := rewindFromFlags(cmd, args)
	if err != nil {
		return err
	}
	if r.client, err = newKafkaClient(cmd); err != nil {
		return err
	}
	defer r.client.Close()
	if r.cluster, err = kafka.ClusterID(cmd.Context(), r.client); err != nil {
		return err
	}
	if r.undo != nil && r.undo.Cluster != r.cluster {
		return fail(exitConflict, "", "the file is of Kafka cluster %q, this one is %q", r.undo.Cluster, r.cluster)
	}
	url, err := ownerURL(cmd)
	if err != nil {
		return err
	}
	return withGroup(cmd.Context(), url, r.group, func(pool *pgxpool.Pool) error {
		r.pool = pool
		return r.planAndRun(cmd.Context(), out)
	})
}

func (r *rewind) planAndRun(ctx context.Context, out *output) error {
	moves, err := r.plan(ctx)
	if err != nil {
		return err
	}
	docs, err := forecastReads(ctx, r.client, r.pool, r.group, moves)
	if err != nil {
		return ownerError(err)
	}
	if err := list(out, docs, moveTable(docs)); err != nil || len(moves) == 0 {
		return err
	}
	if yes, _ := r.cmd.Flags().GetBool("yes"); !yes {
		r.cmd.PrintErrf("%d partitions of group %s would be set; --yes does it\n", len(moves), r.group)
		return nil
	}
	return r.run(ctx)
}

func rewindFromFlags(cmd *cobra.Command, args []string) (*rewind, error) {
	r := &rewind{cmd: cmd}
	if len(args) == 1 {
		r.group = args[0]
	}
	f := cmd.Flags()
	if lease, _ := f.GetDuration("lease"); lease < time.Second || lease > time.Hour {
		return nil, usage("", "--lease must be between 1s and 1h, is %v", lease)
	}
	r.to.Topic = stringFlag(cmd, "topic")
	r.to.Partition, _ = f.GetInt32("partition")
	if r.to.Partition >= 0 && r.to.Topic == "" {
		return nil, usage("", "--partition needs --topic")
	}
	if file := stringFlag(cmd, "undo"); file != "" {
		if stringFlag(cmd, "to") != "" || r.to.Topic != "" {
			return nil, usage("", "--undo puts back all that its file names; --to, --topic and --partition do not go with it")
		}
		undo, err := readUndoFile(file)
		if err != nil {
			return nil, err
		}
		if r.group != "" && r.group != undo.Group {
			return nil, fail(exitConflict, "", "%s is of group %s, not of %s", file, undo.Group, r.group)
		}
		r.group, r.undo = undo.Group, undo
	}
	if !slices.Contains(event.Groups(), r.group) {
		return nil, usage("use "+strings.Join(event.Groups(), ", ")+": only their consumers can be paused, and drop what they know",
			"group %q cannot be rewound", r.group)
	}
	if r.undo != nil {
		return r, nil
	}
	return r, r.parseTo(stringFlag(cmd, "to"), time.Now())
}

func (r *rewind) parseTo(text string, now time.Time) error {
	const hint = "write -15m, 2006-01-02T15:04:05Z, earliest or an offset"
	if text == "" {
		return usage(hint, "--to is required")
	}
	if text == "earliest" {
		return nil
	}
	if offset, err := strconv.ParseInt(text, 10, 64); err == nil {
		if r.to.Topic == "" || r.to.Partition < 0 {
			return usage("each partition has its own offsets", "--to with an offset needs --topic and --partition")
		}
		r.to.Offset = &offset
		return nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago < 0 {
		r.to.Time = now.Add(ago)
		return nil
	}
	at, err := time.Parse(time.RFC3339, text)
	switch {
	case err != nil:
		return usage(hint, "--to %q is no time and no offset", text)
	case at.After(now):
		return usage(hint, "--to %s has not been yet", text)
	}
	r.to.Time = at
	return nil
}

// plan returns what would be changed now.
func (r *rewind) plan(ctx context.Context) ([]kafka.Move, error) {
	if r.undo != nil {
		return r.undo.plan(ctx, r.client)
	}
	moves, err := kafka.PlanRewind(ctx, r.client, r.group, r.to)
	switch {
	case errors.Is(err, kafka.ErrNothingCommitted):
		return nil, fail(exitNotFound, "`orderflow groups describe "+r.group+"` shows what it has committed", "%w", err)
	case errors.Is(err, kafka.ErrOffsetRange):
		return nil, usage("", "%w", err)
	}
	return moves, err
}

// maxForecast is the most records of a partition that a forecast looks at.
const maxForecast = 500

// forecastReads looks how many of the records that would be read again the group knows.
func forecastReads(ctx context.Context, client *kgo.Client, pool *pgxpool.Pool, group string, moves []kafka.Move) ([]moveDoc, error) {
	docs := make([]moveDoc, len(moves))
	at := map[string]int{}
	ids := make([][]uuid.UUID, len(moves))
	var spans []kafka.Span
	for i, m := range moves {
		docs[i] = moveDoc{Group: group, Topic: m.Topic, Partition: m.Partition, Committed: m.From, Target: m.To, Again: max(0, m.From-m.To)}
		at[fmt.Sprintf("%s/%d", m.Topic, m.Partition)] = i
		spans = append(spans, kafka.Span{Topic: m.Topic, Partition: m.Partition, From: m.To, To: m.From, Most: maxForecast})
	}
	limited, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := kafka.Read(limited, client, spans, func(record *kgo.Record) {
		i := at[fmt.Sprintf("%s/%d", record.Topic, record.Partition)]
		docs[i].Sampled++
		for _, h := range record.Headers {
			if id, err := uuid.ParseBytes(h.Value); h.Key == "ce_id" && err == nil {
				ids[i] = append(ids[i], id)
			}
		}
	})
	if err != nil && (ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded)) {
		return nil, err // what was read in time makes an estimate
	}
	for i := range docs {
		if docs[i].Duplicates, err = inbox.CountProcessed(ctx, pool, group, ids[i]); err != nil {
			return nil, err
		}
		docs[i].Estimate = int64(docs[i].Sampled) < docs[i].Again
	}
	return docs, nil
}

func moveTable(docs []moveDoc) *table {
	t := &table{header: []string{"TOPIC", "PARTITION", "COMMITTED", "TARGET", "AGAIN", "DUPLICATES"}, empty: "nothing to change: no partition is behind its target"}
	for _, d := range docs {
		t.add(d.Topic, d.Partition, d.Committed, d.Target, d.Again, d.share())
	}
	return t
}

// share says how many of the records that are read again the group knows.
func (d moveDoc) share() string {
	switch {
	case d.Again == 0:
		return fmt.Sprintf("- (%d records are skipped)", d.Target-d.Committed)
	case d.Sampled == 0:
		return "unknown, no record could be read"
	case d.Estimate:
		return fmt.Sprintf("about %d of %d, by %d of the first %d", int64(d.Duplicates)*d.Again/int64(d.Sampled), d.Again, d.Duplicates, d.Sampled)
	}
	return fmt.Sprintf("%d of %d", d.Duplicates, d.Again)
}
