// Package load places orders at a fixed rate and keeps a journal of every request and answer.
//
// [Run] is an open loop: orders arrive when they are due, whether or not earlier ones have been answered, and a latency
// counts from the moment the order was due. A slow api therefore shows as latency, not as a lower rate.
//
// An order whose outcome is unknown (no answer, a 5xx, a conflict with its own first request) is sent again under the
// same Idempotency-Key until it is known or [Options.RetryFor] is over. A [Journal] has each request on disk before it is
// sent and each answer before it is counted, so after a crash of either side the file still says what may exist.
package load
