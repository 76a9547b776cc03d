// Package apiclient speaks the api's HTTP for the command line.
//
// A [Client] sends one request per call and never repeats one by itself: whether a request may be sent again, and under
// which idempotency key, is the caller's decision. An answer of the api that is not a success becomes a [*Problem]; no
// answer at all becomes an [*Unreachable], after which the caller does not know whether the api did what it was asked.
package apiclient
