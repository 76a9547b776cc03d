package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// hold opens, until release is called, what makes other relays stall or slow down: a transaction that has written elsewhere
// and stays open, so that the oldest open transaction id does not move, and a snapshot, so that nothing dead is vacuumed.
func hold(ctx context.Context, url string) (release func(), err error) {
	var conns []*pgx.Conn
	release = func() {
		for _, conn := range conns {
			_ = conn.Close(context.WithoutCancel(ctx)) // its transaction ends with it, however it ends
		}
	}
	for _, statements := range []string{
		`BEGIN; INSERT INTO ` + schema + `.orders (note) VALUES ('open')`,
		`BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM ` + schema + `.orders`,
	} {
		conn, err := pgx.Connect(ctx, url)
		if err == nil {
			conns = append(conns, conn)
			_, err = conn.Exec(ctx, statements)
		}
		if err != nil {
			release()
			return nil, errors.Join(err, fmt.Errorf("hold a transaction open: %s", statements))
		}
	}
	return release, nil
}
