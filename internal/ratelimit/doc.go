// Package ratelimit limits how often somebody may ask, across processes, without ever being the reason that nothing works.
//
// A [Limiter] counts in Redis, so that all processes share one limit, by the generic cell rate algorithm (GCRA): a key may
// come Burst times at once and then PerSecond times a second. When Redis does not answer within 50 ms the limiter counts in
// its own memory for a second before it asks again; a process then grants the limit by itself, so the limit is looser by
// the number of processes but never gone. No caller waits longer than those 50 ms, and while Redis is away only one a
// second waits at all.
package ratelimit
