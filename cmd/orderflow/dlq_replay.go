package main

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/inbox"
)

const (
	handful       = 5  // messages of a group that are handed back at once
	stopAfterRest = 10 // failures that end a replay after its canaries
)

func newDLQReplay() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "replay [GROUP/NUMBER...]",
		Short: "Hand dead messages back to their consumers",
		Long: `Hands dead messages back to their consumers, which try them again in the order of their key. Only the consumer group that
failed sees them. A message that fails for good again is dead again; one that fails for a reason that may pass is held, with all
its tries before it. Name the messages, or select them with flags.

More than 5 messages of a group go in stages: one, whose fate is waited for, then ten, then the rest. The replay stops when
one of these first eleven fails again, or ten of a group in all; --stop-after N sets both to N. What was handed back before stays
with its consumer. --canary=false hands all back at once; up to 5 are handed back without waiting, unless --wait says so.

The same command goes on after a stop or Ctrl-C: it selects what is still dead. Without --yes it only prints what it would
do, as with --dry-run: how many would run, how many have been processed already and would be dropped, and how many wait
behind them. Exit code 6: some failed again.`,
		Example: `  orderflow dlq replay email/12 email/13 --yes
  orderflow dlq replay --group order --fingerprint 3f2a91c07b1d --dry-run
  orderflow dlq replay --group email --class business_invalid --rate 50 --yes`,
		RunE: replayParked,
	}
	addParkedFilter(cmd)
	cmd.Flags().Bool("all", false, "select every dead message of every group")
	cmd.Flags().Bool("dry-run", false, "only print what would be done, even with --yes")
	cmd.Flags().Float64("rate", 0, "messages handed back per second (default: no limit; each consumer process works on two keys at a time)")
	cmd.Flags().Bool("canary", true, "one first, then ten, then the rest (default: for more than 5 messages of a group)")
	cmd.Flags().Int("stop-after", 0, "stop when so many of a group have failed again (default: 1 among the first eleven, 10 afterwards)")
	cmd.Flags().Bool("wait", false, "wait until each message is handled or has failed again (always with canaries and --stop-after)")
	cmd.Flags().Duration("timeout", time.Minute, "give up waiting when no message has met its fate for so long")
	addYesFlag(cmd)
	addDatabaseFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

// replayOptions are the flags of dlq replay.
type replayOptions struct {
	pause     time.Duration // between two messages
	canary    bool
	canarySet bool // by the user: also for a handful
	wait      bool
	stopAfter int // 0: the defaults
	timeout   time.Duration
	onlyPrint bool
}

func replayFlags(cmd *cobra.Command) (o replayOptions, err error) {
	rate, _ := cmd.Flags().GetFloat64("rate")
	if rate < 0 {
		return o, usage("0 is no limit", "--rate %v is negative", rate)
	}
	if rate > 0 {
		o.pause = time.Duration(float64(time.Second) / rate)
	}
	o.stopAfter, _ = cmd.Flags().GetInt("stop-after")
	if o.stopAfter < 0 || o.stopAfter == 0 && cmd.Flags().Changed("stop-after") {
		return o, usage("", "--stop-after %d is not positive", o.stopAfter)
	}
	o.timeout, _ = cmd.Flags().GetDuration("timeout")
	if o.timeout <= 0 {
		return o, usage("", "--timeout %v is not positive", o.timeout)
	}
	o.canary, _ = cmd.Flags().GetBool("canary")
	o.canarySet = cmd.Flags().Changed("canary")
	o.wait, _ = cmd.Flags().GetBool("wait")
	o.wait = o.wait || o.stopAfter > 0
	dry, _ := cmd.Flags().GetBool("dry-run")
	yes, _ := cmd.Flags().GetBool("yes")
	o.onlyPrint = dry || !yes
	return o, nil
}

// canaries reports whether n messages of a group go in stages.
func (o replayOptions) canaries(n int) bool { return o.canary && (o.canarySet || n > handful) }

func replayParked(cmd *cobra.Command, args []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	opts, err := replayFlags(cmd)
	if err != nil {
		return err
	}
	url, err := ownerURL(cmd)
	if err != nil {
		return err
	}
	plan, err := planReplay(cmd, url, args)
	if err != nil {
		return err
	}
	if err := printParked(out, plan); err != nil || len(plan) == 0 {
		return err
	}
	byGroup := map[string][]inbox.Parked{}
	for _, p := range plan {
		byGroup[p.Group] = append(byGroup[p.Group], p)
	}
	drops, err := forecast(cmd, url, byGroup)
	if err != nil {
		return err
	}
	if opts.onlyPrint {
		cmd.PrintErrf("%d dead messages would be replayed; --yes does it\n", len(plan))
		return nil
	}
	r := &replayRun{cmd: cmd, opts: opts, total: len(plan), show: newProgress(cmd.ErrOrStderr())}
	for _, group := range slices.Sorted(maps.Keys(byGroup)) {
		err := withGroup(cmd.Context(), url, group, func(pool *pgxpool.Pool) error {
			return r.replay(pool, group, byGroup[group])
		})
		if err != nil {
			r.show.end()
			cmd.PrintErrln(r.summary())
			return r.stopped(err)
		}
	}
	r.show.end()
	cmd.PrintErrln(r.summary())
	if gone := len(plan) - r.handed - drops; gone > 0 {
		return fail(exitPartial, "", "%d messages had been resolved by somebody else", gone)
	}
	return r.verdict()
}

// planReplay returns the dead messages that the arguments or flags select, each group's in the order of its keys.
func planReplay(cmd *cobra.Command, url string, names []string) ([]inbox.Parked, error) {
	plan, err := chooseParked(cmd, url, names, inbox.StateDead)
	if err != nil {
		return nil, err
	}
	for _, p := range plan {
		if p.State != inbox.StateDead {
			return nil, fail(exitConflict, "it is tried again by itself; `orderflow dlq retry` has a held one tried now", "%s is %s, not dead", parkedName(p), p.State)
		}
	}
	slices.SortStableFunc(plan, func(a, b inbox.Parked) int { return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.ID, b.ID)) })
	return plan, nil
}

// forecast prints what a replay would do in each group, and returns how many messages it would drop.
func forecast(cmd *cobra.Command, url string, byGroup map[string][]inbox.Parked) (drops int, err error) {
	for _, group := range slices.Sorted(maps.Keys(byGroup)) {
		err := withGroup(cmd.Context(), url, group, func(pool *pgxpool.Pool) error {
			f, err := inbox.ForecastReplay(cmd.Context(), pool, group, idsOf(byGroup[group]))
			if err != nil {
				return err
			}
			drops += f.Drop
			cmd.PrintErrf("%s: %d to run, %d already processed and to be dropped, %d waiting behind them\n", group, f.Run, f.Drop, f.Behind)
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return drops, nil
}

func idsOf(parked []inbox.Parked) []int64 {
	ids := make([]int64, len(parked))
	for i, p := range parked {
		ids[i] = p.ID
	}
	return ids
}
