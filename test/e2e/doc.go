// Package e2e tests the whole walk from the outside: the real binary, real Postgres, the real Kafka protocol, and a payment
// provider and a mail catcher that remember what they did.
package e2e
