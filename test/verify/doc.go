// Package verify checks what must hold when the order system is at rest, whatever was done to it before. Every check is
// independent of the services' code: it reads their tables as the owner, the topics, the provider's and the mail catcher's
// journal, and what the clients wrote down.
//
// Each invariant is named: I13 is the one about money. A [Violation] is one row that should not be there.
package verify
