// Package event is the wire contract between the services: every topic, every event type, and the payload of each.
//
// A payload type names its own topic, key, type and subject, so a producer cannot pair a payload with the wrong topic.
// Types carry a major version ("order.placed.v1"). Within a major version fields are only added; a reader ignores what
// it does not know. The golden files under testdata hold one payload per type and version, and must stay readable for
// ever; the JSON Schemas under schema describe them for readers in other languages.
//
// The key of every event is the user's id: one user's events in one topic are read in the order they were committed.
package event
