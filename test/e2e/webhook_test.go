package e2e

import (
	"bytes"
	"net/http"
	"testing"

	"github.com/orderflow-dev/orderflow/test/system"
)

// The answer to the charge is lost and no question is answered: what the provider reports by itself, through the api, the relay
// and Kafka, is the only word of it that the saga gets.
func TestAChargeIsSettledByTheProvidersReport(t *testing.T) {
	t.Parallel()
	d := binary.StartDev(t, append(onKafka(t), "--ephemeral")...)
	faults := func(body string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, d.Ready.Sandbox+"/v1/faults", bytes.NewReader([]byte(body)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode >= 300 {
			t.Fatalf("POST /v1/faults = %d", resp.StatusCode)
		}
	}
	faults(`{"lookups":"503"}`)
	lost := d.Place(t, system.OrderOf(system.NewUser(), "pm_lost_answer"))
	d.AwaitStatus(t, lost.ID, decided, "shipped")
	d.AwaitOutside(t, lost.ID, "charge 2750", "mail confirmation", "mail shipped")
	faults(`{}`)
	finish(t, d)
}
