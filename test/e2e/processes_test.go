package e2e

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/localpg"
	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/test/system"
)

const (
	rolePassword = "e2e-role-password"
	apiKey       = "e2e-api-key-of-a-service"
)

// Each service is a process of its own that needs nothing but its flags.
func TestEachServiceRunsAsItsOwnProcess(t *testing.T) {
	t.Parallel()
	owner := startPostgres(t)
	broker := kafkatest.New(t)
	kafka := broker.Addrs[0]
	binary.MustRun(t, "migrate", "--database-url", owner, "--role-password", rolePassword, "--kafka", kafka)
	db := system.OpenDB(t, owner)
	seed(t, db)

	role := func(name string) string {
		config := db.Config().ConnConfig
		return fmt.Sprintf("postgres://%s:%s@%s:%d/%s", name, rolePassword, config.Host, config.Port, config.Database)
	}
	const anyPort = "127.0.0.1:0"
	services := map[string]*system.Process{}
	start := func(name string, args ...string) *system.Process {
		services[name] = binary.Start(t, append(args, "--ops-addr", anyPort)...)
		return services[name]
	}
	sandbox := binary.Start(t, "sandbox", "--addr", anyPort, "--smtp-addr", anyPort, "--sandbox-dir", t.TempDir())
	sandboxAddr, smtpAddr := sandbox.Said(t, "sandbox serves", "http"), sandbox.Said(t, "sandbox serves", "smtp")
	api := start("api", "api", "--addr", anyPort, "--database-url", role("orders"))
	relay := []string{
		"relay", "--kafka", kafka, "--orders-database-url", role("orders_relay"),
		"--email-database-url", role("email_relay"), "--warehouse-database-url", role("warehouse_relay"),
	}
	leader := start("relay 1", relay...)
	start("relay 2", relay...)
	start("order", "order", "--database-url", role("orders"), "--kafka", kafka, "--payment-url", "http://"+sandboxAddr)
	start("email", "email", "--database-url", role("email"), "--kafka", kafka, "--smtp-addr", smtpAddr)
	start("warehouse", "warehouse", "--database-url", role("warehouse"), "--kafka", kafka)
	for name, p := range services {
		addr := p.Said(t, "serving health and metrics", "addr")
		system.Eventually(t, decided, name+" is ready", func() error { return ready(t, addr) })
	}

	d := &system.Dev{
		Client: system.NewClient("http://"+api.Said(t, "serving", "addr"), apiKey, "http://"+sandboxAddr), DB: db,
		Ready: system.Ready{Postgres: owner, Kafka: kafka, Sandbox: "http://" + sandboxAddr},
	}
	t.Cleanup(d.Close)
	goesThrough := func(method, status string, outside ...string) {
		t.Helper()
		placed := d.Place(t, system.OrderOf(system.NewUser(), method))
		d.AwaitStatus(t, placed.ID, decided, status)
		d.AwaitOutside(t, placed.ID, outside...)
	}
	goesThrough("pm_ok", "shipped", "charge 2750", "mail confirmation", "mail shipped")
	goesThrough("pm_declined", "payment_failed", "mail failure")
	// One of the two relays led so far, maybe this one.
	leader.Kill(t)
	goesThrough("pm_ok", "shipped", "charge 2750", "mail confirmation", "mail shipped")
	finish(t, d)
}

func startPostgres(t *testing.T) (ownerURL string) {
	t.Helper()
	options := localpg.Options{DataDir: filepath.Join(system.DataDir(t), "postgres"), NoFsync: true}
	if cache, err := os.UserCacheDir(); err == nil {
		options.InitCache = filepath.Join(cache, "orderflow", "pgtest")
	}
	server, err := localpg.Start(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(t.Context()); err != nil { // the context has ended: an immediate shutdown
			t.Error(err)
		}
	})
	return server.URL("postgres")
}

// seed adds the catalog and an api key, which only the owner may.
func seed(t *testing.T, db *pgxpool.Pool) {
	t.Helper()
	if err := order.SeedCatalog(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256([]byte(apiKey))
	_, err := db.Exec(t.Context(), `INSERT INTO orders.api_keys (hash, role, name) VALUES ($1, 'service', 'e2e')`, hash[:])
	if err != nil {
		t.Fatal(err)
	}
}

func ready(t *testing.T, addr string) error {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("/readyz says %d", resp.StatusCode)
	}
	return nil
}
