package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/orderflow-dev/orderflow/test/system"
)

// A mail provider that refuses everything, then a database that refuses every email: what the command line shows of each, and
// that it ends with each mail accepted once. docs/operations.md walks through the same.
func TestEveryMailComesOnceAfterTheMailsWereBroken(t *testing.T) {
	t.Parallel()
	d := binary.StartDev(t, append(onKafka(t), "--ephemeral", "--seed-orders", "0")...)
	says := func(what string, code int, words []string, args ...string) {
		t.Helper()
		args = append(args, "--data-dir", d.Ready.DataDir)
		var out system.Output
		system.Eventually(t, decided, what, func() error {
			out = d.Binary.Run(t, args...)
			for _, word := range words {
				if !strings.Contains(out.Stdout+out.Stderr, word) {
					return fmt.Errorf("%q is not in\n%s%s", word, out.Stdout, out.Stderr)
				}
			}
			if out.Code != code {
				return fmt.Errorf("exit code %d, want %d\n%s%s", out.Code, code, out.Stdout, out.Stderr)
			}
			return nil
		})
		t.Logf("%s\n$ orderflow %s\n%s%s", what, strings.Join(args[:len(args)-2], " "), out.Stdout, out.Stderr)
	}
	nothingParked := []string{"nothing is parked"}

	var orders []system.Order
	place := func(n int) {
		for range n {
			orders = append(orders, d.Place(t, system.OrderOf(system.NewUser(), "pm_ok")))
		}
		d.AwaitStatus(t, orders[len(orders)-1].ID, decided, "shipped")
	}
	fault(t, d, `{"smtp":"451"}`)
	place(12)
	refused := orders[len(orders)-1]
	says("the timeline of an order names the refusal", 0, []string{"confirmation not sent, now queued", ": 451"}, "orders", "timeline", refused.ID)
	says("the messages are handled: it is the mails that wait", 0, nil, "groups", "lag", "email", "--fail-over", "0")
	says("so nothing is parked", 0, nothingParked, "dlq", "groups")

	// More than a hundred keys that fail are no bad messages.
	exec(t, d, `REVOKE INSERT ON email.emails FROM email`)
	place(80)
	readyz := "circuit open since"
	system.Eventually(t, decided, "the email service says that it has stopped", func() (err error) {
		if body := get(t, d.Ready.Ops["email"]+"/readyz"); !strings.Contains(body, readyz) {
			err = fmt.Errorf("%q is not in %s", readyz, body)
		}
		return err
	})
	t.Logf("$ curl …/readyz\n%s", get(t, d.Ready.Ops["email"]+"/readyz"))
	says("some keys are held, for one cause", 0, []string{"permission denied"}, "dlq", "groups", "--group", "email")
	says("the other messages wait in Kafka", 7, []string{"email is "}, "groups", "lag", "email", "--fail-over", "0")
	says("by partition", 0, []string{"Stable"}, "groups", "describe", "email")
	if n := len(mails(t, d)); n != 0 {
		t.Errorf("%d mails were accepted while the provider refused all, want 0", n)
	}

	exec(t, d, `GRANT INSERT ON email.emails TO email`)
	fault(t, d, `{}`)
	for _, o := range orders {
		d.AwaitOutside(t, o.ID, "charge 2750", "mail confirmation", "mail shipped")
	}
	says("all keys went on by themselves", 0, nothingParked, "dlq", "groups")
	says("nothing waits", 0, nil, "groups", "lag", "email", "--fail-over", "0")

	// Rows that are lost come back; their mails were sent.
	exec(t, d, `DELETE FROM email.emails WHERE order_id = '`+refused.ID+`'`)
	says("the plan of a rebuild", 0, []string{"--yes does it"}, "groups", "rebuild", "email", "--as", "email-again")
	says("both emails come back", 0, []string{"CAME BACK", "2 "}, "groups", "rebuild", "email", "--as", "email-again", "--yes")
	system.Eventually(t, decided, "the lost emails are known to be sent", func() (err error) {
		var n int
		query := `SELECT count(*) FROM email.emails WHERE order_id = $1 AND state = 'sent'`
		if err = d.DB.QueryRow(t.Context(), query, refused.ID).Scan(&n); err == nil && n != 2 {
			err = fmt.Errorf("%d of them are", n)
		}
		return err
	})
	d.AwaitOutside(t, refused.ID, "charge 2750", "mail confirmation", "mail shipped")
	for _, group := range []string{"email", "order", "warehouse"} {
		says("group "+group+" has lost nothing", 0, []string{`"came_back": 0`, `"left": 0`, `"dead": 0`}, "groups", "rebuild", group, "--as", group+"-check", "--yes", "-o", "json")
	}
	finish(t, d)
}

func mails(t *testing.T, d *system.Dev) []system.Entry {
	t.Helper()
	entries, err := d.Journal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var found []system.Entry
	for _, e := range entries {
		if e.Kind == "mail" {
			found = append(found, e)
		}
	}
	return found
}

func exec(t *testing.T, d *system.Dev, sql string) {
	t.Helper()
	if _, err := d.DB.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// fault sets what the sandbox does wrong.
func fault(t *testing.T, d *system.Dev, body string) {
	t.Helper()
	resp, err := http.Post(d.Ready.Sandbox+"/v1/faults", "application/json", bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("fault %s: %s", body, resp.Status)
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
