package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/internal/kafka"
)

// look is where a group stands and, when it was looked at twice, how it moves.
type look struct {
	kafka.Group
	sampled   bool
	flow      kafka.Flow
	flowKnown bool
}

// groupDoc is a group as JSON shows it. What is not known is null.
type groupDoc struct {
	Name    string   `json:"name"`
	State   string   `json:"state"`
	Members int      `json:"members"`
	Topics  int      `json:"topics"`
	Lag     *int64   `json:"lag"`
	Age     *float64 `json:"age_seconds"`
	Unknown []string `json:"unknown"` // why lag or age is null
	In      *float64 `json:"in_per_second,omitempty"`
	Out     *float64 `json:"out_per_second,omitempty"`
	Drains  *float64 `json:"drains_in_seconds,omitempty"` // only while more is finished than is written
}

func newGroupDoc(l look) groupDoc {
	doc := groupDoc{Name: l.Name, State: l.State, Members: len(l.Members), Topics: countTopics(l.Group), Unknown: append([]string{}, l.Unknown()...)}
	lag, known := l.Lag()
	if known {
		doc.Lag = &lag
	}
	if age, ok := l.Age(); ok {
		seconds := age.Seconds()
		doc.Age = &seconds
	}
	if !l.flowKnown {
		return doc
	}
	doc.In, doc.Out = &l.flow.In, &l.flow.Out
	if d, drains := l.flow.Drain(lag); known && drains {
		seconds := d.Seconds()
		doc.Drains = &seconds
	}
	return doc
}

func addSampleFlag(cmd *cobra.Command) {
	cmd.Flags().Duration("sample", 0, "look twice, this far apart, and show what was written and finished per second and when the lag is gone")
}

// withGroups looks at the groups that are named, or at all, once or with --sample twice.
func withGroups(cmd *cobra.Command, names []string, f func(*output, []look) error) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	sample, _ := cmd.Flags().GetDuration("sample")
	if sample < 0 || sample > time.Hour {
		return usage("such as --sample 2s", "--sample must be between 0 and 1h, is %v", sample)
	}
	client, err := newKafkaClient(cmd)
	if err != nil {
		return err
	}
	defer client.Close()
	looks, err := lookAt(cmd.Context(), client, names, sample)
	if err != nil {
		return err
	}
	return f(out, looks)
}

func lookAt(ctx context.Context, client *kgo.Client, names []string, sample time.Duration) ([]look, error) {
	before, err := findGroups(ctx, client, names)
	if err != nil {
		return nil, err
	}
	if sample == 0 {
		return compareLooks(nil, before), nil
	}
	if !sleep(ctx, sample) {
		return nil, ctx.Err()
	}
	after, err := findGroups(ctx, client, names)
	if err != nil {
		return nil, err
	}
	return compareLooks(before, after), nil
}

// compareLooks pairs what was seen with what was seen before, nil for a first look.
func compareLooks(before, after []kafka.Group) []look {
	earlier := map[string]kafka.Group{}
	for _, g := range before {
		earlier[g.Name] = g
	}
	looks := make([]look, len(after))
	for i, g := range after {
		looks[i] = look{Group: g, sampled: before != nil}
		if was, seen := earlier[g.Name]; seen {
			looks[i].flow, looks[i].flowKnown = kafka.NewFlow(was, g)
		}
	}
	return looks
}

// findGroups returns the groups that are named, each of which must exist, or all.
func findGroups(ctx context.Context, client *kgo.Client, names []string) ([]kafka.Group, error) {
	if len(names) == 0 {
		return kafka.Groups(ctx, client)
	}
	var groups []kafka.Group
	for _, name := range names {
		g, err := kafka.Describe(ctx, client, name)
		if errors.Is(err, kafka.ErrNoGroup) {
			return nil, fail(exitNotFound, "`orderflow groups list` shows those that exist", "there is no consumer group %q", name)
		}
		if err != nil {
			return nil, err
		}
		groups = append(groups, g)
	}
	return groups, nil
}

func groupTable(looks []look) ([]groupDoc, *table) {
	t := &table{header: []string{"GROUP", "STATE", "MEMBERS", "TOPICS", "LAG", "AGE"}, empty: "no consumer groups"}
	sampled := len(looks) > 0 && looks[0].sampled
	if sampled {
		t.header = append(t.header, "IN/S", "OUT/S", "TREND")
	}
	t.header = append(t.header, "NOTE")
	var docs []groupDoc
	for _, l := range looks {
		doc := newGroupDoc(l)
		docs = append(docs, doc)
		row := []any{l.Name, stateCell(l.State), doc.Members, doc.Topics, totalLag(l.Group), totalAge(l.Group)}
		if sampled {
			row = append(row, perSecond(doc.In), perSecond(doc.Out), trendCell(doc))
		}
		t.add(append(row, cell{strings.Join(doc.Unknown, "; "), "warn"})...)
	}
	return docs, t
}

func newGroupsLag() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lag [GROUP...]",
		Short: "Check how far groups are behind, for scripts and monitors",
		Long: `Prints one line for each consumer group, of all or of those named, whoever's they are, and exits with 7 if one is over a limit,
or if its lag is not known, whatever the limits, or its age while --fail-over-age is given. A group that does not exist is exit
code 3.

The lag of a group is unknown, among others, when a topic that it has committed in was deleted, when retention has removed
records before they were read, and when no broker answers for a partition.`,
		Example: "  orderflow groups lag order email --fail-over 10000 --fail-over-age 5m\n  orderflow groups lag --sample 2s -o jsonl",
		RunE: func(cmd *cobra.Command, args []string) error {
			limits, err := lagLimitsFromFlags(cmd)
			if err != nil {
				return err
			}
			return withGroups(cmd, args, func(out *output, looks []look) error {
				docs, t := groupTable(looks)
				if err := list(out, docs, t); err != nil {
					return err
				}
				return limits.check(looks)
			})
		},
	}
	cmd.Flags().Int64("fail-over", -1, "fail if a group has more unfinished records than this; -1: no limit")
	cmd.Flags().Duration("fail-over-age", 0, "fail if an unfinished record is older than this; 0: no limit")
	addSampleFlag(cmd)
	addKafkaFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

type lagLimits struct {
	records int64         // -1: none
	age     time.Duration // 0: none
}

func lagLimitsFromFlags(cmd *cobra.Command) (limits lagLimits, err error) {
	limits.records, _ = cmd.Flags().GetInt64("fail-over")
	limits.age, _ = cmd.Flags().GetDuration("fail-over-age")
	if limits.records < -1 {
		return limits, usage("", "--fail-over must not be negative, is %d", limits.records)
	}
	if limits.age < 0 {
		return limits, usage("", "--fail-over-age must not be negative, is %v", limits.age)
	}
	return limits, nil
}

// check names the groups that are over a limit or may be.
func (limits lagLimits) check(looks []look) error {
	var bad []string
	for _, l := range looks {
		lag, lagKnown := l.Lag()
		age, ageKnown := l.Age()
		switch {
		case limits.records >= 0 && lag > limits.records:
			bad = append(bad, fmt.Sprintf("%s is %d records behind, more than %d", l.Name, lag, limits.records))
		case limits.age > 0 && age > limits.age:
			bad = append(bad, fmt.Sprintf("%s has a record that waits for %s, longer than %v", l.Name, shortSeconds(age.Seconds()), limits.age))
		case !lagKnown:
			bad = append(bad, fmt.Sprintf("the lag of %s is unknown: %s", l.Name, strings.Join(l.Unknown(), "; ")))
		case limits.age > 0 && !ageKnown:
			bad = append(bad, fmt.Sprintf("the age of %s is unknown: %s", l.Name, strings.Join(l.Unknown(), "; ")))
		}
	}
	if len(bad) > 0 {
		return fail(exitCheckFailed, "`orderflow groups describe GROUP` shows it by partition", "%s", strings.Join(bad, "\n"))
	}
	return nil
}

func totalLag(g kafka.Group) cell {
	lag, known := g.Lag()
	switch {
	case known:
		return lagCell(&lag)
	case lag > 0:
		return cell{fmt.Sprintf("unknown, over %d", lag), "warn"}
	}
	return lagCell(nil)
}

func totalAge(g kafka.Group) cell {
	age, known := g.Age()
	if !known && age > 0 {
		return cell{"unknown, over " + shortSeconds(age.Seconds()), "warn"}
	}
	return ageCell(age, known)
}

func ageCell(age time.Duration, known bool) cell {
	switch {
	case !known:
		return cell{"unknown", "warn"}
	case age == 0:
		return cell{"-", "good"}
	}
	return cell{text: shortSeconds(age.Seconds())}
}

func perSecond(rate *float64) string {
	if rate == nil {
		return "unknown"
	}
	return strconv.FormatFloat(*rate, 'f', 1, 64)
}

// trendCell says in words where a group's lag goes.
func trendCell(doc groupDoc) cell {
	switch {
	case doc.In == nil || doc.Lag == nil:
		return cell{"unknown", "warn"}
	case *doc.Lag == 0:
		return cell{"up to date", "good"}
	case doc.Drains != nil:
		return cell{"gone in " + shortSeconds(*doc.Drains), "good"}
	case *doc.In > *doc.Out:
		return cell{fmt.Sprintf("grows by %.1f/s", *doc.In-*doc.Out), "bad"}
	}
	return cell{"stands still", "warn"}
}
