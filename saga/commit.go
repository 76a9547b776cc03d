package saga

import (
	"context"

	"github.com/orderflow-dev/orderflow/saga/internal/crash"
)

// commit is how an engine makes something last: do commits it, with a crash point on either side, so that a test which
// crashes engines at every point leaves no commit out.
func commit(ctx context.Context, what string, do func() error) error {
	if err := crash.At(ctx, crash.BeforeCommit, what); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return crash.At(ctx, crash.AfterCommit, what)
}
