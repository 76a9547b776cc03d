-- +goose Up

-- Who had an order's money paid back, why, and what came of it. The row is the decision and its audit.
CREATE TABLE refunds (
  id           uuid        PRIMARY KEY, -- also its saga's
  order_id     uuid        NOT NULL REFERENCES orders,
  reason       text        NOT NULL CHECK (reason <> ''), -- a sentence for the user
  requested_by text        NOT NULL CHECK (requested_by <> ''),
  requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  state        text        NOT NULL DEFAULT 'requested' CHECK (state IN ('requested', 'paid', 'refused')),
  refusal      text        NOT NULL DEFAULT '', -- the provider's
  ended_at     timestamptz,
  CHECK ((state = 'requested') = (ended_at IS NULL))
);

-- Money goes back once. Only after a refusal may it be asked for again.
CREATE UNIQUE INDEX refunds_once ON refunds (order_id) WHERE state <> 'refused';

GRANT SELECT, INSERT, UPDATE (state, refusal, ended_at) ON refunds TO orders;

-- +goose Down
DROP TABLE refunds;
