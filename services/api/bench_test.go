package api_test

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/orderflow-dev/orderflow/services/api"
)

// BenchmarkPlace measures accepted orders through HTTP and a real Postgres without fsync, by 16 clients of 1,000 users.
func BenchmarkPlace(b *testing.B) {
	b.Run("describe", func(b *testing.B) { benchPlace(b, "") })
	b.Run("prepared", func(b *testing.B) { benchPlace(b, "&default_query_exec_mode=cache_statement") })
}

func benchPlace(b *testing.B, q string) {
	s := start(b, newDB(b), func(c *api.Config) { c.DatabaseURL += q; c.MaxConns = 16 })
	var n atomic.Int64
	b.SetParallelism(8)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			userID := "user-" + strconv.FormatInt(n.Add(1)%1000, 10)
			r := s.do(b, call{method: "POST", path: "/v1/orders", idempotency: uuid.NewString(), body: orderBody(userID)})
			if r.status != http.StatusCreated {
				b.Errorf("POST = %d %s %v", r.status, r.body, r.err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "orders/s")
}
