// Package relay publishes what the services have written to their outboxes: one [outbox.Relay] for each schema that has
// one, each with its own connection to Postgres, as the schema's relay role, and its own to Kafka. One that has trouble
// does not hold up the others.
//
// Two or more processes with the same sources are hot standbys of each other.
package relay
