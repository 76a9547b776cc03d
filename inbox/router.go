package inbox

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// router finds the route of a message.
type router struct {
	byType map[topicType]*route
	// names maps a type without its major version to true where a route handles some version of it.
	names    map[topicType]bool
	fallback map[string]*route // by topic: carries the policy for messages that cannot be routed
}

type topicType struct{ topic, typ string }

// route is a Route with what the consumer learns about it.
type route struct {
	Route
	limit batchLimit
	pace  pace // guarded by the lanes
}

func newRouter(routes []Route) (*router, error) {
	r := &router{byType: map[topicType]*route{}, names: map[topicType]bool{}, fallback: map[string]*route{}}
	var errs []error
	if len(routes) == 0 {
		errs = append(errs, errors.New("no routes"))
	}
	for _, rt := range routes {
		switch {
		case rt.Topic == "" || rt.Type == "":
			errs = append(errs, fmt.Errorf("route %q %q: topic or type is empty", rt.Topic, rt.Type))
		case (rt.Handle == nil) == (rt.HandleBatch == nil):
			errs = append(errs, fmt.Errorf("route %s %s: set exactly one of Handle and HandleBatch", rt.Topic, rt.Type))
		}
		one := &route{Route: rt} // for all its types: their messages share batches
		for _, typ := range rt.Types() {
			at := topicType{rt.Topic, typ}
			switch {
			case r.byType[at] != nil:
				errs = append(errs, fmt.Errorf("route %s %s: given twice", rt.Topic, typ))
			case typ != rt.Type && !olderVersion(typ, rt.Type):
				errs = append(errs, fmt.Errorf("route %s %s: %q is no older version of it", rt.Topic, rt.Type, typ))
			}
			r.byType[at] = one
		}
		if name, _, ok := splitVersion(rt.Type); ok {
			r.names[topicType{rt.Topic, name}] = true
		}
		// A message that cannot be routed holds its key, unless no route of its topic would.
		fb := r.fallback[rt.Topic]
		if fb == nil {
			fb = &route{Route: Route{Topic: rt.Topic, Policy: rt.Policy}}
			r.fallback[rt.Topic] = fb
		}
		if rt.Policy == HoldKey {
			fb.Policy = HoldKey
		}
	}
	return r, errors.Join(errs...)
}

// topics returns the topics of the routes, sorted.
func (r *router) topics() []string {
	topics := make([]string, 0, len(r.fallback))
	for topic := range r.fallback {
		topics = append(topics, topic)
	}
	slices.Sort(topics)
	return topics
}

// routed returns the topics and types that have a route, as two columns.
func (r *router) routed() (topics, types []string) {
	for at := range r.byType {
		topics, types = append(topics, at.topic), append(types, at.typ)
	}
	return topics, types
}

// find returns the route of a message, nil for a type that is not this group's business. otherVersion is true when
// only another major version of the type has a route.
func (r *router) find(topic, typ string) (rt *route, otherVersion bool) {
	if rt := r.byType[topicType{topic, typ}]; rt != nil {
		return rt, false
	}
	name, _, ok := splitVersion(typ)
	return nil, ok && r.names[topicType{topic, name}]
}

// splitVersion splits "order.placed.v1" into "order.placed" and "v1".
func splitVersion(typ string) (name, version string, ok bool) {
	i := strings.LastIndex(typ, ".v")
	if i <= 0 || i+2 == len(typ) || strings.Trim(typ[i+2:], "0123456789") != "" {
		return typ, "", false
	}
	return typ[:i], typ[i+1:], true
}

// olderVersion reports whether a is an earlier major version of type b.
func olderVersion(a, b string) bool {
	nameA, versionA, okA := splitVersion(a)
	nameB, versionB, okB := splitVersion(b)
	if !okA || !okB || nameA != nameB {
		return false
	}
	numberA, errA := strconv.ParseUint(versionA[1:], 10, 64)
	numberB, errB := strconv.ParseUint(versionB[1:], 10, 64)
	return errA == nil && errB == nil && numberA < numberB
}
