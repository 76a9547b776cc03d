-- +goose Up

-- One row per line of an order, whatever became of it. The row is also the barrier: a release that comes before its reserve
-- inserts the line as 'released', which moves no stock, and the reserve that comes late finds the row and is refused.
CREATE TABLE reservations (
  order_id   uuid        NOT NULL REFERENCES orders,
  sku        text        NOT NULL REFERENCES products,
  quantity   bigint      NOT NULL CHECK (quantity > 0),
  state      text        NOT NULL CHECK (state IN ('held', 'released', 'shipped')),
  updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (order_id, sku)
);

CREATE INDEX reservations_held ON reservations (sku) WHERE state = 'held';

-- One payment per order. A pending one is on its way, or in doubt.
CREATE TABLE payments (
  order_id        uuid        PRIMARY KEY REFERENCES orders,
  intent_id       text        UNIQUE, -- the provider's id; NULL until its answer is stored
  idempotency_key text        NOT NULL UNIQUE,
  amount          bigint      NOT NULL CHECK (amount > 0), -- minor units
  currency        text        NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
  status          text        NOT NULL CHECK (status IN ('pending', 'charged', 'declined', 'cancelled', 'refunded')),
  refund_id       text        UNIQUE,
  reason          text        NOT NULL DEFAULT '',
  created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
  updated_at      timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- +goose Down
DROP TABLE payments, reservations;
