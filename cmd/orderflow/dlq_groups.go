package main

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/inbox"
)

// parkedGroupDoc is a group of parked messages as JSON shows it.
type parkedGroupDoc struct {
	Group       string    `json:"group"`
	Type        string    `json:"type"`
	Class       string    `json:"class,omitempty"`
	Fingerprint string    `json:"fingerprint,omitempty"`
	Dead        int       `json:"dead"`
	Held        int       `json:"held"`
	Waiting     int       `json:"waiting"`
	Keys        int       `json:"keys"`
	FirstSeen   time.Time `json:"first_seen"`
	LastSeen    time.Time `json:"last_seen"`
	Error       string    `json:"error,omitempty"`
}

func newDLQGroups() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "groups",
		Short: "Count parked messages by what they failed with",
		Long: `Prints one line for each consumer group, type, class of error and fingerprint: most likely one cause. The fingerprint is the
same for errors that differ in ids and numbers only; --fingerprint selects these messages in list, replay and discard.
Messages that only wait behind others have neither class nor fingerprint.`,
		Example: "  orderflow dlq groups\n  orderflow dlq groups --group order --state dead -o json",
		Args:    cobra.NoArgs,
		RunE:    groupParked,
	}
	addParkedFilter(cmd)
	addStateFlag(cmd, "")
	addDatabaseFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

func groupParked(cmd *cobra.Command, _ []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	state, err := stateFromFlag(cmd)
	if err != nil {
		return err
	}
	url, err := ownerURL(cmd)
	if err != nil {
		return err
	}
	var found []inbox.ParkedGroup
	err = eachGroup(cmd, url, func(pool *pgxpool.Pool, group string) error {
		of, err := inbox.GroupParked(cmd.Context(), pool, parkedFilter(cmd, group, state))
		found = append(found, of...)
		return err
	})
	if err != nil {
		return err
	}
	slices.SortStableFunc(found, func(a, b inbox.ParkedGroup) int { return cmp.Compare(b.Dead, a.Dead) })
	var docs []parkedGroupDoc
	t := &table{header: []string{"GROUP", "TYPE", "CLASS", "FINGERPRINT", "DEAD", "HELD", "WAITING", "KEYS", "FIRST SEEN", "LAST SEEN", "ERROR"}, empty: "nothing is parked"}
	for _, g := range found {
		docs = append(docs, parkedGroupDoc(g))
		dead := cell{text: strconv.Itoa(g.Dead)}
		if g.Dead > 0 {
			dead.style = "bad"
		}
		t.add(g.Group, g.Type, g.Class, g.Fingerprint, dead, g.Held, g.Waiting, g.Keys, localTime(g.FirstSeen), localTime(g.LastSeen), firstLine(g.Error, 80))
	}
	return list(out, docs, t)
}
