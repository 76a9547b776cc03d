package event

// Topics, named for what they carry.
const (
	Orders          = "orders"           // order.placed, order.cancel_requested, order.refund_requested
	OrdersCompleted = "orders.completed" // order.completed, order.refunded
	OrdersFailed    = "orders.failed"    // order.failed
	Shipments       = "shipments"        // shipment.created, shipment.cancelled
	Payments        = "payments"         // payment.reported
)

// Consumer groups, named like the service that runs them.
const (
	GroupOrder     = "order"
	GroupEmail     = "email"
	GroupWarehouse = "warehouse"
)

// DeadLetters returns the topic that holds copies of group's dead letters.
func DeadLetters(group string) string { return group + ".dlq" }

// Groups lists the consumer groups of the order system.
func Groups() []string { return []string{GroupOrder, GroupEmail, GroupWarehouse} }

// Topics lists every topic of the order system, the dead-letter topics included.
func Topics() []string {
	topics := []string{Orders, OrdersCompleted, OrdersFailed, Shipments, Payments}
	for _, group := range Groups() {
		topics = append(topics, DeadLetters(group))
	}
	return topics
}

// Partitions is the partition count of every topic. It never changes: with another count a user's key would move to
// another partition, and the order of the user's messages would be lost.
const Partitions = 12
