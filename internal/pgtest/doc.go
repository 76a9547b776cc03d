// Package pgtest gives each test a Postgres database of its own, on a real server.
//
// A test binary starts one server, at its first [NewEmpty] or [New], and ends it in [Main]. A database is cloned from a
// template in some 30 ms, so tests run in parallel and never see each other's rows. Nothing is durable: fsync is off.
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
//
//	func TestWriteStoresTheMessage(t *testing.T) {
//		t.Parallel()
//		db := pgtest.NewEmpty(t)
//		db.Migrate(t, outbox.Migrations(), "orders")
//		…
//
// Tests of services want all migrations: package migrated has a New that applies them. It is a package of its own so that
// the libraries, whose migrations it needs, can use this one in their tests.
//
// $ORDERFLOW_TEST_POSTGRES names an existing server to use instead: the URL of a superuser, whose databases and roles
// tests may create and drop. Several test binaries can share it.
package pgtest
