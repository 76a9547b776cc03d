// Package sandbox is the outside world for development and tests: a payment provider over HTTP and a mail catcher over
// SMTP, in a process of their own. The other services talk to it as they would to the real thing and never link it.
//
// What it promises is what a checker needs. Every charge, refund, cancel and accepted mail is in the journal, once, in
// the order it happened, and was on disk before anybody was told of it. All state is rebuilt from the journal at start,
// so a sandbox that is killed has forgotten nothing it answered for. It hides nothing either: a caller that charges one
// order with two intents is charged twice, and a mail that is handed over twice is accepted twice.
//
// # Payments
//
//	POST /v1/payment_intents                      {amount, currency, payment_method, reference}   201 requires_confirmation
//	POST /v1/payment_intents/{id}/confirm                                                         200 succeeded, 402 declined
//	POST /v1/payment_intents/{id}/cancel                                                          200 canceled, 409 succeeded
//	GET  /v1/payment_intents/{id}                                                                 200, 404
//	GET  /v1/payment_intents?idempotency_key=KEY  the intent that KEY created                     200, 404
//	POST /v1/refunds                              {payment_intent}                                201, 409
//
// Amounts are minor units of currency (ISO 4217). Creating, confirming and refunding need an Idempotency-Key header. Keys
// are scoped to the operation and kept for ever: a repeat is told the stored answer, with "Idempotent-Replayed: true";
// the same key with another request is told 409 idempotency_key_reused. An intent is in one of four states:
// requires_confirmation, succeeded, declined, canceled. A cancelled intent can no longer be charged: its confirm is told
// 402 intent_canceled, and it makes no difference whether the confirm was sent before the cancel. A refund is of the
// whole amount; a second one, under another key, is told 409 already_refunded. Errors are {code, message}.
//
// The payment method chooses what the first confirm of an intent does, and its refund. A repeat under the same key is told
// the stored answer, where there is one.
//
//	method                  charged          the caller is told
//	pm_ok                   at once          200
//	pm_declined             no               402, as for every method that is not named here
//	pm_slow                 after Slow       200
//	pm_late                 after Late       200, if it is still there; a cancel before that wins
//	pm_lost_answer          at once          nothing: the connection breaks
//	pm_timeout_charged      at once          nothing for Hang, then 504; repeats are told 200
//	pm_timeout              never            nothing for Hang, then 504, each time
//	pm_error_charged        at once          500; repeats are told 200
//	pm_error_once           second confirm   500, then 200
//	pm_webhook_first        at once          200 once its webhook was taken, nothing if that takes longer than Hang
//	pm_webhook_only         at once          nothing: the connection breaks once its webhook was taken, or after Hang
//	pm_webhook_repeated     at once          200; each of its webhooks is sent three times, two at once and one after Slow
//	pm_refund_lost_answer   at once          200; its refund is made and the connection breaks, a repeat is told 201
//	pm_refund_timeout_once  at once          200; its first refund is not made: nothing for Hang, then 504; the next one is
//
// Slow, Late and Hang are those of [Config]: by default 1 s, 15 s and 30 s, and a caller should give up between the first
// and the second. Without a webhook URL there is nothing to wait for: pm_webhook_first is as pm_ok, and pm_webhook_only as
// pm_lost_answer.
//
// # Webhooks
//
// With a [Config.WebhookURL], that URL is sent a POST for each charge, decline, cancel and refund:
//
//	Webhook-Signature: t=1767323045,v1=<hex HMAC-SHA256 over "<t>.<body>" under Config.WebhookSecret>
//	{"id": "evt_…", "type": "payment_intent.succeeded", "created": 1767323045, "data": {"object": <the intent, as GET shows it>}}
//
// The other types are payment_intent.payment_failed, payment_intent.canceled and refund.created. An event is sent at least
// once: again and again, with growing pauses, until the answer is 2xx, also after a restart, always under the same id and
// with the same body. Events may overtake each other. An event that happens while no URL is set is never sent.
//
// # Mail
//
//	GET /v1/mail[?to=&message_id=&order_id=]      what was accepted, in order, as a JSON array
//	GET /v1/mail/{seq}                            one mail with its text and HTML
//
// # Journal and faults
//
//	GET  /v1/journal[?after=SEQ]                  JSON lines {seq, at, kind, reference, …}, kind charge|refund|cancel|mail
//	GET  /v1/faults                               the faults that are set, as they are posted
//	POST /v1/faults                               {"smtp": "451", "smtp_count": 2, "payments": "drop"}
//
// In the journal a mail's own kind is email_kind, and its reference is the order's id, from the headers X-Order-ID and
// X-Email-Kind. Faults are described at [Faults]; they are not state and end with the process.
//
// /healthz, /readyz and /metrics are there as in every service. Ready means that the journal can be written.
package sandbox
