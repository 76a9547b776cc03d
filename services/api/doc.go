// Package api accepts orders over HTTP.
//
// A 2xx answer to POST /v1/orders means that the order, its place in its user's sequence, the message that tells the other
// services of it, and this very answer are stored, in one Postgres transaction. A client that did not get the answer sends
// the request again with the same Idempotency-Key and gets it. After a 4xx there is no order of this request; after a 5xx,
// or without an answer, the same key finds out.
//
// Neither Kafka nor Redis is needed to accept an order. Without Redis the rate limits are this process's own.
//
// [Run] serves until its context ends.
package api
