// Package chaos tests the whole walk under faults: whatever is killed, what was accepted is done, once.
package chaos
