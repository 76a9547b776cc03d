package api_test

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
)

// BenchmarkPlace measures accepted orders through HTTP and a real Postgres without fsync, by 16 clients of 1,000 users.
func BenchmarkPlace(b *testing.B) {
	s := start(b, newDB(b), nil)
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
