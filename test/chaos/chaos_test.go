package chaos

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/orderflow-dev/orderflow/test/system"
	"github.com/orderflow-dev/orderflow/test/verify"
)

// binary is the program under test. TestMain builds it once; the testing package gives tests no other way to it.
var binary *system.Binary

func TestMain(m *testing.M) { system.Main(m, &binary) }

const (
	orders = 1000
	rate   = 80
	kills  = 3
)

// 1,000 orders, 5 % of them declined and 2 % with a lost answer, while everything is killed three times: Postgres, the
// broker, the provider and all services are one process. Afterwards every client's account, every table, every topic and the
// provider's journal agree.
func TestKillingEverythingThreeTimesLosesNothing(t *testing.T) {
	dir, journal := system.DataDir(t), filepath.Join(t.TempDir(), "load.jsonl")
	port := system.FreePort(t)
	start := func() *system.Dev {
		return binary.StartDev(t, "--data-dir", dir, "--seed-orders", "0", "--api-port", strconv.Itoa(port))
	}
	d := start()
	loaded := make(chan system.Output, 1)
	go func() {
		loaded <- binary.Run(t, "load", "--api", d.Ready.API, "--api-key", d.Ready.APIKey,
			"--rate", strconv.Itoa(rate), "--orders", strconv.Itoa(orders), "--users", "150",
			"--declines", "0.05", "--lost-answers", "0.02", "--retry-for", "5m", "--journal", journal, "-o", "json")
	}()
	for i := range kills {
		accepted := (i + 1) * orders / (kills + 1)
		system.Eventually(t, 3*time.Minute, fmt.Sprintf("%d orders are accepted", accepted), func() error {
			var n int
			if err := d.DB.QueryRow(t.Context(), `SELECT count(*) FROM orders.orders`).Scan(&n); err != nil {
				return err
			}
			if n < accepted {
				return fmt.Errorf("%d are", n)
			}
			return nil
		})
		d.DB.Close()
		d.Kill(t)
		d = start()
	}
	output := <-loaded
	var summary struct{ Orders, Accepted, Refused, Unknown, Retried int }
	if err := json.Unmarshal([]byte(output.Stdout), &summary); err != nil || output.Code != 0 {
		t.Fatalf("orderflow load: exit code %d, %v\n%s%s", output.Code, err, output.Stdout, output.Stderr)
	}
	if summary.Accepted != orders || summary.Retried == 0 {
		t.Errorf("load ended with %+v, want all %d orders accepted, and some of them after a retry", summary, orders)
	}

	requests, err := verify.ReadJournal(journal)
	if err != nil {
		t.Fatal(err)
	}
	target := verify.Target{DB: d.DB, Kafka: system.Kafka(t, d.Ready.Kafka), Outside: d.Client, Clients: requests}
	if err := verify.AtRest(t.Context(), target, 3*time.Minute); err != nil {
		t.Fatalf("not at rest: %v", err)
	}
	violations, err := verify.Check(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range violations {
		t.Error(v)
	}
	notVacuous(t, d)
}

// notVacuous checks that what the test is about did happen: I26.
func notVacuous(t *testing.T, d *system.Dev) {
	t.Helper()
	var shipped, declined, lost int
	err := d.DB.QueryRow(t.Context(), `
		SELECT count(*) FILTER (WHERE status = 'shipped'), count(*) FILTER (WHERE status = 'payment_failed'),
			count(*) FILTER (WHERE payment_method = 'pm_lost_answer')
		FROM orders.orders`).Scan(&shipped, &declined, &lost)
	if err != nil || shipped == 0 || declined == 0 || lost == 0 {
		t.Errorf("%d orders shipped, %d declined, %d with a lost answer, %v; want some of each", shipped, declined, lost, err)
	}
}
