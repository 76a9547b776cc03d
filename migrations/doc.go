// Package migrations brings a database to the schema that this version of the order system works with.
//
// [Up] creates the roles, and in each of the schemas orders, email and warehouse the tables of the libraries that the
// service uses and then its own. It can be run again at any time, by several processes at once, and does nothing when
// there is nothing to do. It refuses a database that a newer version has migrated.
//
// Each schema belongs to one service, which logs in as the role of the schema's name; its relay logs in as <schema>_relay.
// A role reaches its own schema only, and there only what its service does: no query, foreign key or grant crosses a
// schema, so a service moves to a database of its own by changing its URL.
//
// Files are goose SQL, applied in order and never changed once released. Run Up over a direct connection: its locks belong
// to the session, which a pooler in transaction mode does not keep.
package migrations
