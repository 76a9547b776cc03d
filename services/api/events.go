package api

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/orderflow-dev/orderflow/internal/httpserver"
	"github.com/orderflow-dev/orderflow/internal/order"
)

const (
	// heartbeat is how often a stream without news says that it is still there, so that proxies keep it open.
	heartbeat = 15 * time.Second
	// streamLimit ends a stream, so that its key is checked again; clients reconnect by themselves.
	streamLimit = 10 * time.Minute
)

type eventsInput struct {
	ID   string `path:"id" format:"uuid"`
	Last string `header:"Last-Event-ID" doc:"The id of the last event that arrived; browsers send it when they reconnect"`
}

// orderEvents streams an order as server-sent events: as it is now, and then at every change until its last. The events'
// ids are the order's versions, so a client that reconnects gets what it missed.
func (a *api) orderEvents(ctx context.Context, in *eventsInput) (*huma.StreamResponse, error) {
	o, err := a.readOwn(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	leave, err := a.watch.enter(callOf(ctx).caller)
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		defer leave()
		_, w := humago.Unwrap(hc)
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Cache-Control", "no-store")
		ctx, cancel := context.WithTimeout(ctx, streamLimit)
		defer cancel()
		if err := a.stream(ctx, w, o, in.Last); err != nil && ctx.Err() == nil {
			a.log.DebugContext(ctx, "stream of an order ended early", slog.String("order_id", in.ID), slog.Any("error", err))
		}
	}}, nil
}

func (a *api) stream(ctx context.Context, w http.ResponseWriter, o order.Order, last string) error {
	conn := http.NewResponseController(w)
	for {
		text := ": nothing new\n\n"
		if id := fmt.Sprint(o.Version); id != last {
			encoded, err := json.Marshal(view(o))
			if err != nil {
				return fmt.Errorf("encode order: %w", err)
			}
			text = "id: " + id + "\nevent: order\ndata: " + string(encoded) + "\n\n"
			last = id
		}
		if _, err := w.Write([]byte(text)); err != nil {
			return err
		}
		if err := conn.Flush(); err != nil {
			return err
		}
		if o.Status.Last() {
			return nil
		}
		seen := o.Version
		err := a.watch.await(ctx, o.ID, heartbeat, func(_ order.Status, version int64) bool { return version != seen })
		if err != nil {
			return err
		}
		select {
		case <-httpserver.Draining(ctx):
			return nil // the client reconnects, elsewhere
		default:
		}
		if o, err = a.readOwn(ctx, o.ID.String()); err != nil {
			return err
		}
	}
}
