// Package localkafka runs Apache Kafka for development and tests, without Docker: Java processes in KRaft mode, each node
// broker and controller at once, on the loopback interface.
//
// [Start] fetches Kafka from Maven's repository when the user's cache lacks it (some 60 MB), formats the data directory when
// it is empty, starts the nodes and returns when each of them lists all of them and consumer groups work. [Cluster.Stop]
// ends it; the data stays. Java 17 or newer is needed, and Maven for the first start.
//
// The nodes die with their owner where the system can arrange that (Linux); elsewhere an orphan has to be ended by hand, and
// keeps the next start from its directory until then. A directory is used by one owner at a time: a second Start returns
// [ErrInUse] while the first is alive.
//
// It is not for production: one machine, no authentication, small heaps.
package localkafka
