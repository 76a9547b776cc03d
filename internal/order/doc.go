// Package order is the order itself: what it consists of, which changes it allows, and the SQL that makes them.
//
// Every function that writes takes the caller's transaction, so an order changes together with the message that tells of
// it. Each change adds one to the order's version and one row to order_history. A change that the order's status does not
// allow returns [ErrStatus] and writes nothing.
//
// A cancel is decided under the order's row lock. While an order is pending [RequestCancel] notes the request; from then on
// [SetStatus] refuses to complete it with [ErrCancelRequested]. So a cancel that was accepted always wins.
package order
