package e2e

import (
	"fmt"
	"testing"

	"github.com/orderflow-dev/orderflow/test/system"
)

// Orders that were accepted outlive the process, however it ends: they are decided after the next start, and nothing is
// done twice.
func TestARestartInTheMiddleLosesNothing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		end  func(t *testing.T, d *system.Dev)
	}{
		{"SIGTERM", func(t *testing.T, d *system.Dev) { d.Stop(t) }},
		{"kill -9", func(t *testing.T, d *system.Dev) { d.Kill(t) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := system.DataDir(t)
			args := append(onKafka(t), "--data-dir", dir)
			d := binary.StartDev(t, append(args, "--seed-orders", "5")...)
			var ids []string
			for i := range 12 {
				user := fmt.Sprint("user-", i%4)
				for _, method := range []string{"pm_ok", "pm_slow", "pm_lost_answer"} {
					ids = append(ids, d.Place(t, system.OrderOf(user, method)).ID)
				}
			}
			before := unfinished(t, d, ids)
			if before == 0 {
				t.Error("every order was decided before the end: nothing was in the middle")
			}
			d.DB.Close()
			tt.end(t, d)

			d = binary.StartDev(t, args...)
			for _, id := range ids {
				d.AwaitStatus(t, id, decided, "shipped")
			}
			finish(t, d)
			t.Logf("%d of %d orders were under way at the end", before, len(ids))
		})
	}
}

func unfinished(t *testing.T, d *system.Dev, ids []string) int {
	t.Helper()
	n := 0
	for _, id := range ids {
		if d.Get(t, id).Status != "shipped" {
			n++
		}
	}
	return n
}
