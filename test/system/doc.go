// Package system runs the real binary for tests, and talks to it as a user, an operator and the outside world would: over
// HTTP, SQL, Kafka and the command line. It imports nothing that a service is made of.
package system
