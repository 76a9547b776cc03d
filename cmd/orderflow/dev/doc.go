// Package dev runs the whole order system in one process: a private Postgres, a Kafka broker, a Redis, the sandbox and
// every service.
//
// [Run] keeps its data in one folder, so that a later run continues where the last one ended, also after a crash. One
// process uses a folder at a time; a second one is told who holds it ([InUse]). While it runs, the folder's ready.json
// says where everything listens ([ReadReady]).
//
// The broker is franz-go's kfake: the real protocol and a durable log, but one node. Its log can be torn by a crash of
// the machine. Then it is moved aside and filled again from the outboxes, which keep more than an hour of messages;
// consumers drop what they have seen. Everything else is what production runs.
package dev
