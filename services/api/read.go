package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/orderflow-dev/orderflow/internal/order"
)

const (
	// readTimeout bounds one look into the database.
	readTimeout = 3 * time.Second
	// maxWait bounds how long a client may have us wait for an order. Proxies cut what is silent for longer.
	maxWait = 60 * time.Second
	// defaultWait is how long we wait if the client does not say.
	defaultWait = 30 * time.Second
)

type getInput struct {
	ID          string `path:"id" format:"uuid"`
	WaitFor     string `query:"wait_for" enum:"terminal" doc:"Answer when the order is no longer pending, or when the timeout ends"`
	Timeout     string `query:"timeout" example:"30s" doc:"How long to wait: seconds, or a duration such as 1m30s. Default 30s; more than 60s waits 60s."`
	IfNoneMatch string `header:"If-None-Match" doc:"An ETag: 304 without a body if the order is still the same"`
}

type getOutput struct {
	Status int
	ETag   string `header:"ETag"`
	Body   document[orderView]
}

func (a *api) getOrder(ctx context.Context, in *getInput) (*getOutput, error) {
	patience, err := parseWait(in.WaitFor, in.Timeout)
	if err != nil {
		return nil, err
	}
	o, err := a.readOwn(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if patience > 0 && !o.Status.Terminal() {
		leave, err := a.watch.enter(callOf(ctx).caller)
		if err != nil {
			return nil, err
		}
		defer leave()
		err = a.watch.await(ctx, o.ID, patience, func(s order.Status, _ int64) bool { return s.Terminal() })
		if err != nil {
			return nil, err
		}
		if o, err = a.readOwn(ctx, in.ID); err != nil {
			return nil, err
		}
	}
	tag := etag(o)
	if matches(in.IfNoneMatch, tag) {
		return &getOutput{Status: http.StatusNotModified, ETag: tag}, nil
	}
	encoded, err := json.Marshal(view(o))
	if err != nil {
		return nil, fmt.Errorf("encode order: %w", err)
	}
	return &getOutput{Status: http.StatusOK, ETag: tag, Body: encoded}, nil
}

// readOwn returns the order if the caller may see it. Another user's order, an order that does not exist and an id that
// cannot exist give the same answer: nobody learns which orders there are.
func (a *api) readOwn(ctx context.Context, id string) (order.Order, error) {
	parsed, ok := parseID(id)
	if !ok {
		return order.Order{}, notFound()
	}
	leave, err := a.slots.enter()
	if err != nil {
		return order.Order{}, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	o, err := order.ByID(ctx, a.pool, parsed)
	if errors.Is(err, order.ErrNotFound) || err == nil && !callOf(ctx).caller.mayAct(o.UserID) {
		return order.Order{}, notFound()
	}
	return o, err
}

// parseID reads the usual form of a UUID only; the parser alone takes three more.
func parseID(s string) (uuid.UUID, bool) {
	id, err := uuid.Parse(s)
	return id, err == nil && len(s) == 36
}

func parseWait(waitFor, timeout string) (time.Duration, error) {
	switch waitFor {
	case "":
		return 0, nil
	case "terminal":
	default:
		return 0, badQuery("wait_for", "must be terminal, or left out")
	}
	if timeout == "" {
		return defaultWait, nil
	}
	patience, err := time.ParseDuration(timeout)
	if seconds, notSeconds := strconv.ParseUint(timeout, 10, 16); notSeconds == nil {
		patience, err = time.Duration(seconds)*time.Second, nil
	}
	if err != nil || patience < 0 {
		return 0, badQuery("timeout", "must be a number of seconds, or a duration such as 30s")
	}
	return min(patience, maxWait), nil
}

func badQuery(name, detail string) *problem {
	return newProblem(http.StatusBadRequest, "", "The query string has a mistake.").at("query."+name, detail)
}

// matches reports whether an If-None-Match header names the tag.
func matches(header, tag string) bool {
	for candidate := range strings.SplitSeq(header, ",") {
		candidate = strings.TrimPrefix(strings.TrimSpace(candidate), "W/")
		if candidate == "*" || candidate == tag {
			return true
		}
	}
	return false
}
