package stripepay

import (
	"bufio"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/orderflow-dev/orderflow/internal/payment"
)

// mock starts stripe-mock, Stripe's own server for tests: it checks each request against Stripe's OpenAPI document, which has
// an answer to everything and knows no state. It is in a module of its own, tools/stripe-mock.
func mock(t *testing.T) (base string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "stripe-mock")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "github.com/stripe/stripe-mock")
	build.Dir = filepath.Join("..", "..", "..", "tools", "stripe-mock")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build stripe-mock: %v\n%s", err, out)
	}
	server := exec.Command(program, "-http-addr", "127.0.0.1:0")
	said, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait() // killed
	})
	for lines := bufio.NewScanner(said); lines.Scan(); {
		if _, addr, ok := strings.Cut(lines.Text(), "Listening for HTTP at address: "); ok {
			return "http://" + addr
		}
	}
	t.Fatal("stripe-mock did not say where it listens")
	return ""
}

// What we send is what Stripe's document describes, and what it shows there is understood.
func TestStripesOwnServerTakesOurRequests(t *testing.T) {
	t.Parallel()
	target, err := url.Parse(mock(t))
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	a := stripeThat(t, func(w http.ResponseWriter, r *http.Request) { proxy.ServeHTTP(w, r) })
	ctx := t.Context()
	made, err := a.Create(ctx, chargeID, payment.Intent{Amount: 2000, Currency: "EUR", Method: "pm_card_visa", Reference: orderID})
	if err != nil || made.ID == "" || made.Amount != 2000 || made.Currency != "EUR" {
		t.Errorf("Create = %+v, %v; want one over what was asked for", made, err)
	}
	if got, err := a.Confirm(ctx, chargeID+":confirm", made.ID); err != nil || got.ID != made.ID {
		t.Errorf("Confirm = %+v, %v", got, err)
	}
	// stripe-mock's intents never change their state.
	if cancelled, err := a.Cancel(ctx, made.ID); cancelled || err == nil || !strings.Contains(err.Error(), "it is requires_payment_method") {
		t.Errorf("Cancel = %v, %v; want an intent that is not cancelled", cancelled, err)
	}
	if id, err := a.Refund(ctx, orderID+":charge-payment:undo:1", made.ID); err != nil || !strings.HasPrefix(id, "re_") {
		t.Errorf("Refund = %q, %v", id, err)
	}
	if got, ok, err := a.ByID(ctx, made.ID); got.ID != made.ID || !ok || err != nil {
		t.Errorf("ByID = %+v, %v, %v", got, ok, err)
	}
	if got, ok, err := a.ByKey(ctx, chargeID); got.ID == "" || !ok || err != nil {
		t.Errorf("ByKey = %+v, %v, %v", got, ok, err)
	}
	if got, next, err := a.List(ctx, time.Now().Add(-time.Hour), time.Now(), ""); len(got) != 1 || next != "" || err != nil {
		t.Errorf("List = %+v, %q, %v; want the one of the document", got, next, err)
	}
	if n := len(a.requests()); n != 7 {
		t.Errorf("%d requests of 7 calls", n)
	}
	// A request that does not fit the document is refused, or all of this would prove nothing.
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target.String()+"/v1/payment_intents", strings.NewReader("amount=2000&currency=eur&no_such_parameter=1"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+testKey)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a parameter that Stripe does not know = %d, want 400", resp.StatusCode)
	}
}
