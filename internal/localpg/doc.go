// Package localpg runs a private Postgres server for development and tests, without Docker.
//
// [Find] looks for installed binaries, distribution folders included; [Download] fetches some when there are none.
// [Start] initialises the data directory when it is empty, starts the server on the loopback interface and returns when
// it accepts connections. [Server.Stop] ends it.
//
// Postgres refuses to run as root, so a root caller's server runs as the user postgres or, where there is none, nobody.
// The server dies with its owner where the system can arrange that (Linux). Where it cannot, and after a crash,
// the next [Start] on the same directory finds the orphan, ends it and continues with its data. A directory is used by
// one owner at a time: a second Start returns [ErrInUse] while the first is alive.
//
// It is not for production: one machine, no backups, and with [Options.NoFsync] no durability either.
package localpg
