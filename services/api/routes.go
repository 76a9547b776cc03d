package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"reflect"
	"strconv"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// route is what the prepass must know of a route.
type route struct {
	access   access
	needBody bool
	needKey  bool // an Idempotency-Key
}

// operation is one operation with all that its document and the prepass need.
type operation struct {
	route
	method, path string
	id, summary  string
	body         reflect.Type // of the request
	status       int          // of success
	stream       bool         // the answer is a stream of events
	errors       []int        // besides those every operation has
	tag          string
}

// routes registers every operation on mux and returns the OpenAPI document.
func (a *api) routes(mux *http.ServeMux) ([]byte, error) {
	h := humago.New(mux, humaConfig())
	register(a, h, operation{
		method: http.MethodPost, path: "/v1/orders", id: "create-order", tag: "orders", status: http.StatusCreated,
		summary: "Place an order", body: reflect.TypeFor[newOrder](),
		route:  route{access: anyKey, needBody: true, needKey: true},
		errors: []int{403, 408, 409, 413, 415, 422},
	}, a.createOrder)
	register(a, h, operation{
		method: http.MethodGet, path: "/v1/orders", id: "list-orders", tag: "orders", status: http.StatusOK,
		summary: "List orders, the newest first", route: route{access: anyKey}, errors: []int{403},
	}, a.listOrders)
	register(a, h, operation{
		method: http.MethodGet, path: "/v1/orders/{id}", id: "get-order", tag: "orders", status: http.StatusOK,
		summary: "Read an order, or wait until it is decided", route: route{access: anyKey}, errors: []int{304, 404},
	}, a.getOrder)
	register(a, h, operation{
		method: http.MethodPost, path: "/v1/orders/{id}/cancel", id: "cancel-order", tag: "orders", status: http.StatusAccepted,
		summary: "Cancel an order that is pending", route: route{access: anyKey}, errors: []int{404, 408, 409, 413, 415, 422},
	}, a.cancelOrder)
	register(a, h, operation{
		method: http.MethodPost, path: "/v1/orders/{id}/refund", id: "refund-order", tag: "orders", status: http.StatusAccepted,
		summary: "Pay back an order that is completed or shipped", body: reflect.TypeFor[newRefund](),
		route:  route{access: serviceKey, needBody: true},
		errors: []int{403, 404, 408, 409, 413, 415, 422},
	}, a.refundOrder)
	register(a, h, operation{
		method: http.MethodGet, path: "/v1/orders/{id}/timeline", id: "order-timeline", tag: "orders", status: http.StatusOK,
		summary: "What happened to an order", route: route{access: anyKey}, errors: []int{404},
	}, a.orderTimeline)
	register(a, h, operation{
		method: http.MethodGet, path: "/v1/orders/{id}/events", id: "order-events", tag: "orders", status: http.StatusOK, stream: true,
		summary: "Follow an order: server-sent events, as it is now and at every change", route: route{access: anyKey}, errors: []int{404},
	}, a.orderEvents)
	register(a, h, operation{
		method: http.MethodGet, path: "/v1/products", id: "list-products", tag: "catalog", status: http.StatusOK,
		summary: "List the catalog", route: route{access: anyKey},
	}, a.listProducts)
	register(a, h, operation{
		method: http.MethodGet, path: "/v1/admin/overview", id: "overview", tag: "admin", status: http.StatusOK,
		summary: "What an operator asks first", route: route{access: serviceKey}, errors: []int{403},
	}, a.overview)
	// huma describes its own errors as it registers an operation; nothing answers with them.
	schemas := h.OpenAPI().Components.Schemas.Map()
	maps.DeleteFunc(schemas, func(name string, _ *huma.Schema) bool { return name == "ErrorModel" || name == "ErrorDetail" })
	document, err := json.Marshal(h.OpenAPI())
	if err != nil {
		return nil, fmt.Errorf("encode the OpenAPI document: %w", err)
	}
	return document, nil
}

func humaConfig() huma.Config {
	config := huma.DefaultConfig("Orderflow", "1")
	config.CreateHooks = nil // no $schema in every answer
	// Both are served here: huma's page of the documentation loads its scripts from the network, and its document is encoded
	// by whichever requests come first, at once.
	config.OpenAPIPath, config.DocsPath, config.SchemasPath = "", "", ""
	config.Info.Description = "Places orders and follows them. Amounts are in minor units, times are UTC."
	config.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"key": {Type: "http", Scheme: "bearer", Description: "An API key. A user key acts for its own user, a service key for all."},
	}
	config.Security = []map[string][]string{{"key": {}}}
	format := huma.Format{
		Marshal:   func(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) }, // escapes <, > and &
		Unmarshal: json.Unmarshal,
	}
	config.Formats = map[string]huma.Format{"application/json": format, "json": format} // the latter for problem+json
	return config
}

// register adds an operation whose requests the prepass and the handler check themselves: huma's checks answer with other
// statuses than promised and repeat what was sent.
func register[I, O any](a *api, h huma.API, op operation, do func(context.Context, *I) (*O, error)) {
	pattern := op.method + " " + op.path
	a.prepass.routes[pattern] = op.route
	registered := huma.Operation{
		OperationID: op.id, Method: op.method, Path: op.path, Summary: op.summary, Tags: []string{op.tag},
		DefaultStatus: op.status, SkipValidateBody: true, SkipValidateParams: true,
		Responses: problemResponses(h.OpenAPI().Components.Schemas, append([]int{400, 401, 429, 500, 503}, op.errors...)),
	}
	if op.stream {
		registered.Responses[strconv.Itoa(op.status)] = &huma.Response{
			Description: http.StatusText(op.status), Content: map[string]*huma.MediaType{"text/event-stream": {}},
		}
	}
	huma.Register(h, registered, func(ctx context.Context, in *I) (*O, error) {
		out, err := do(ctx, in)
		if err != nil {
			return nil, a.prepass.problem(ctx, pattern, err)
		}
		return out, nil
	})
	if op.body == nil {
		return
	}
	// Described only now, so that huma does not read it: the handler gets it from the prepass.
	h.OpenAPI().Paths[op.path].Post.RequestBody = &huma.RequestBody{
		Required: true,
		Content: map[string]*huma.MediaType{
			"application/json": {Schema: h.OpenAPI().Components.Schemas.Schema(op.body, true, "")},
		},
	}
}

func problemResponses(schemas huma.Registry, statuses []int) map[string]*huma.Response {
	responses := map[string]*huma.Response{}
	for _, status := range statuses {
		response := &huma.Response{Description: http.StatusText(status)}
		if status != http.StatusNotModified {
			response.Content = map[string]*huma.MediaType{
				"application/problem+json": {Schema: schemas.Schema(reflect.TypeFor[problem](), true, "Problem")},
			}
		}
		responses[strconv.Itoa(status)] = response
	}
	return responses
}
