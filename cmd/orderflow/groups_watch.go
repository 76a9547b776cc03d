package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/internal/kafka"
)

func newGroupsWatch() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "watch [GROUP...]",
		Short: "Watch groups work, until Ctrl-C",
		Long: `Shows the consumer groups, all or those named, again and again: members, partitions, lag in records and in time, what is
written and finished per second, and the hot key: the key that most of the newest records have in the partition that was
read most, of a sample of 200. On a terminal the view stays in place; otherwise each look adds a line for each group.`,
		Example: "  orderflow groups watch\n  orderflow groups watch order --every 5s | tee order.log",
		RunE:    watchGroups,
	}
	cmd.Flags().Duration("every", time.Second, "time between looks")
	addKafkaFlag(cmd)
	return cmd
}

func watchGroups(cmd *cobra.Command, names []string) error {
	every, _ := cmd.Flags().GetDuration("every")
	if every < 100*time.Millisecond || every > time.Hour {
		return usage("such as --every 2s", "--every must be between 100ms and 1h, is %v", every)
	}
	client, err := newKafkaClient(cmd)
	if err != nil {
		return err
	}
	defer client.Close()
	w := cmd.OutOrStdout()
	view := &groupsView{
		client: client, names: names, every: every,
		out: &output{w: w, format: "table", colour: wantsColour(w)}, live: isTerminal(w),
	}
	return view.run(cmd.Context())
}

// groupsView is what `groups watch` shows.
type groupsView struct {
	client *kgo.Client
	names  []string
	every  time.Duration
	out    *output
	live   bool // a terminal: each look replaces the one before
	before []kafka.Group
}

// run looks until ctx ends. Only a first look that fails is an error: later ones may meet a broker that restarts.
func (v *groupsView) run(ctx context.Context) error {
	looks, err := v.look(ctx)
	if err != nil && ctx.Err() == nil {
		return err
	}
	if v.live {
		// The terminal's second screen, without a cursor; what was on the first comes back afterwards.
		fmt.Fprint(v.out.w, "\x1b[?1049h\x1b[?25l")
		defer fmt.Fprint(v.out.w, "\x1b[?25h\x1b[?1049l")
	}
	for {
		if ctx.Err() == nil {
			if err := v.show(looks, err); err != nil {
				return err
			}
		}
		if !sleep(ctx, v.every) {
			return nil
		}
		looks, err = v.look(ctx)
	}
}

// watched is a look with what only a watcher wants to know.
type watched struct {
	look
	hot string
}

func (v *groupsView) look(ctx context.Context) ([]watched, error) {
	after, err := findGroups(ctx, v.client, v.names)
	if err != nil {
		return nil, err
	}
	earlier := map[string]kafka.Group{}
	for _, g := range v.before {
		earlier[g.Name] = g
	}
	var seen []watched
	for _, l := range compareLooks(v.before, after) {
		seen = append(seen, watched{l, v.hotKey(ctx, earlier[l.Name], l.Group)})
	}
	v.before = after
	return seen, nil
}

// hotKey names the hot key of the partition that a group has read most, "-" when it has read none.
func (v *groupsView) hotKey(ctx context.Context, before, after kafka.Group) string {
	p, moved := kafka.Busiest(before, after)
	if !moved {
		return "-"
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	hot, err := kafka.FindHotKey(ctx, v.client, p, 200)
	if err != nil || hot.Seen == 0 {
		return "unknown"
	}
	key := string(hot.Key)
	if hot.Key == nil {
		key = "no key"
	}
	return fmt.Sprintf("%s %d%% of %s/%d", firstLine(key, 40), hot.Records*100/hot.Seen, p.Topic, p.Partition)
}

func (v *groupsView) show(looks []watched, failed error) error {
	if !v.live {
		return v.append(looks, failed)
	}
	var frame bytes.Buffer
	page := &output{w: &frame, format: "table", colour: v.out.colour}
	fmt.Fprintf(&frame, "%s  every %v, Ctrl-C ends it\n\n", localTime(time.Now()), v.every)
	if failed != nil {
		fmt.Fprintf(&frame, "%s\n", page.paint(printable(failed.Error()), "bad"))
	}
	if err := page.table(watchTable(looks)); err != nil {
		return err
	}
	fmt.Fprintln(&frame)
	if err := page.table(memberTable(looks)); err != nil {
		return err
	}
	// In one write, over what is there: an emptied screen would flicker.
	_, err := io.WriteString(v.out.w, "\x1b[H"+strings.ReplaceAll(frame.String(), "\n", "\x1b[K\n")+"\x1b[J")
	return err
}

// append prints a line for each group, for a file or a pipe.
func (v *groupsView) append(looks []watched, failed error) error {
	now := time.Now().Format(time.RFC3339)
	if failed != nil {
		_, err := fmt.Fprintf(v.out.w, "%s error: %s\n", now, printable(failed.Error()))
		return err
	}
	for _, l := range looks {
		doc := newGroupDoc(l.look)
		if _, err := fmt.Fprintf(v.out.w, "%s %s state=%s members=%d partitions=%d lag=%q age=%q in=%s/s out=%s/s trend=%q hot=%q\n",
			now, printable(l.Name), l.State, doc.Members, len(l.Partitions), totalLag(l.Group).text, totalAge(l.Group).text,
			perSecond(doc.In), perSecond(doc.Out), trendCell(doc).text, l.hot); err != nil {
			return err
		}
	}
	return nil
}

func watchTable(looks []watched) *table {
	t := &table{header: []string{"GROUP", "STATE", "MEMBERS", "PARTITIONS", "LAG", "AGE", "IN/S", "OUT/S", "TREND", "HOT KEY", "NOTE"}, empty: "no consumer groups"}
	for _, l := range looks {
		doc := newGroupDoc(l.look)
		note := ""
		if len(doc.Unknown) > 0 {
			note = firstLine(doc.Unknown[0], 60)
		}
		t.add(l.Name, stateCell(l.State), doc.Members, len(l.Partitions), totalLag(l.Group), totalAge(l.Group),
			perSecond(doc.In), perSecond(doc.Out), trendCell(doc), l.hot, cell{note, "warn"})
	}
	return t
}

// memberTable shows how the work is shared out.
func memberTable(looks []watched) *table {
	t := &table{header: []string{"GROUP", "MEMBER", "PARTITIONS", "LAG"}, empty: "no members"}
	for _, l := range looks {
		for _, m := range l.Members {
			mine := kafka.Group{}
			for _, p := range l.Partitions {
				if p.Member == m.ID {
					mine.Partitions = append(mine.Partitions, p)
				}
			}
			lag := totalLag(mine)
			if m.Partitions == 0 {
				lag = cell{text: "-"} // more members than partitions
			}
			t.add(l.Name, memberName(l.Group, m.ID), m.Partitions, lag)
		}
	}
	return t
}
