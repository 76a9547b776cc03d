// Package order decides what becomes of an order: it reads what the api accepted, runs the order's saga, and says how it
// ended.
//
// The saga is a table in saga.go: validate, reserve stock, charge payment, complete order. Whatever was done for an order
// that does not complete is undone in reverse, and the order ends rejected, payment_failed or cancelled. The orders of one
// user run one at a time, in the order in which they were placed.
//
// What it promises:
//   - One charge per order. The payment's idempotency key never changes; an answer that does not come is asked for, never
//     guessed; a payment that is given up is cancelled at the provider first, so it cannot succeed later.
//   - Stock is exact: all lines of an order are reserved or none, down to the last unit, and a reserve that comes after its
//     release is refused.
//   - What the provider reports by itself is one more answer: it settles what could not be asked for, counts once, and is refused
//     where it contradicts the order.
//   - A cancel that was accepted wins: complete order refuses an order with one, under the order's row lock.
//   - The order's status, its history and the message that tells of it commit together.
//
// The consumer group is named order, like the package.
package order
