// Package email tells users what became of their orders: a confirmation and a shipping notice, or why an order failed.
//
// It promises one mail accepted by the provider for each order and kind. A mail cannot join a transaction, so it is done
// in two halves. The handlers of the events ([event.OrderCompleted], [event.OrderFailed], [event.ShipmentCreated]) only
// insert the email as queued, next to the inbox's row; the table's UNIQUE (order_id, kind) is the second wall behind it.
// The sender delivers what is queued over SMTP.
//
// SMTP has no idempotency keys: when the answer to a mail is lost, or the process dies after sending it, only the provider
// knows. So an email is committed as sending, with the provider's name, before its first byte leaves; it has one
// Message-ID for ever; and one that is found in that state is asked about under its Message-ID, never guessed. It goes
// back into the queue when the provider says that it does not have it. What the provider refused was not accepted and
// needs no question: a 4xx is tried again with growing delays, a 5xx a few times, then the email is failed, where a person
// finds it.
//
// Emails that are made again by a rebuild of the group ([RebuildRoutes]) begin in doubt, as their rows may have been lost after
// they were sent.
//
// The promise ends where the provider's look-up does. It must know of every mail two seconds after the connection that
// brought it has ended; and a process that is frozen in the instant between its look at the lease and the first byte, for
// longer than the lease, sends what another has sent meanwhile. Without [Config.LookupURL] an email in doubt is sent again under
// the same Message-ID, and it is the provider that has to drop the second one.
package email
