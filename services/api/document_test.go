package api_test

import (
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/orderflow-dev/orderflow/services/api"
)

// openAPI is what the tests read of the OpenAPI document.
type openAPI struct {
	OpenAPI string
	Paths   map[string]map[string]struct {
		Responses   map[string]any
		RequestBody map[string]any
	}
	Components struct{ Schemas map[string]any }
}

func (s *server) document(t *testing.T) (doc openAPI) {
	t.Helper()
	s.do(t, call{method: "GET", path: "/openapi.json", key: "-"}).decode(t, &doc)
	return doc
}

// seen is the statuses that were answered, by method and path.
type seen struct {
	mu       sync.Mutex
	statuses map[string]map[int]bool
}

func (s *seen) add(c call, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path, _, _ := strings.Cut(c.path, "?")
	at := strings.ToLower(c.method) + " " + path
	if s.statuses[at] == nil {
		s.statuses[at] = map[int]bool{}
	}
	s.statuses[at][status] = true
}

var pathParameter = regexp.MustCompile(`\\\{[^}]*\}`)

// describesAll checks that the document has every status that an operation has answered in the test.
func describesAll(t *testing.T, f *fixture) {
	answered := map[string][]int{} // by operation
	for path, methods := range f.servers["plain"].document(t).Paths {
		match := regexp.MustCompile("^" + pathParameter.ReplaceAllString(regexp.QuoteMeta(path), "[^/]+") + "$")
		for method, op := range methods {
			for at, statuses := range f.seen.statuses {
				gotMethod, gotPath, _ := strings.Cut(at, " ")
				if decoded, err := url.PathUnescape(gotPath); err != nil || gotMethod != method || !match.MatchString(decoded) {
					continue
				}
				for status := range statuses {
					answered[method+" "+path] = append(answered[method+" "+path], status)
					if op.Responses[strconv.Itoa(status)] == nil {
						t.Errorf("%s answered %d, which the document does not have for %s %s", at, status, method, path)
					}
				}
			}
		}
	}
	for _, of := range []string{"post /v1/orders", "post /v1/orders/{id}/cancel", "post /v1/orders/{id}/refund"} {
		for _, status := range []int{400, 404, 408, 409, 413, 415, 422} {
			if !slices.Contains(answered[of], status) && (of != "post /v1/orders" || status != 404) {
				t.Errorf("%s did not answer %d in this test: it proves too little", of, status)
			}
		}
	}
}

func TestThePageOfTheDocumentationFitsItsInstallation(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s, dev := start(t, db, nil), start(t, db, func(c *api.Config) { c.Dev = true })
	page := s.do(t, call{method: "GET", path: "/docs", key: "-"})
	for _, want := range []string{"/v1/orders/{id}/cancel", "Idempotency-Key", "urn:orderflow:problem"} {
		if !strings.Contains(page.body, want) {
			t.Errorf("/docs lacks %q", want)
		}
	}
	if strings.Contains(page.body, "src=") {
		t.Error("/docs loads something")
	}
	if !strings.Contains(page.body, "curl -i "+s.url+"/v1/orders") {
		t.Errorf("the example does not lead to %s", s.url)
	}
	if strings.Contains(page.body, api.DevKey) {
		t.Error("the page shows the development key outside of development")
	}
	if r := dev.do(t, call{method: "GET", path: "/docs", key: "-"}); !strings.Contains(r.body, "Bearer "+api.DevKey) {
		t.Error("the page lacks the development key in development")
	}
	for host, want := range map[string]string{
		"orders.example.com": "curl -i https://orders.example.com/v1/orders", "x;reboot": "curl -i https://HOST/v1/orders",
	} {
		r := s.do(t, call{method: "GET", path: "/docs", key: "-", host: host, header: http.Header{"X-Forwarded-Proto": {"https"}}})
		if !strings.Contains(r.body, want) {
			t.Errorf("the page for host %q lacks %q", host, want)
		}
	}
}
