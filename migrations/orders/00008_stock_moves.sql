-- +goose Up

-- The ledger of the stock: what each order moved of a product, each kind once, written by the statement that moves it and never
-- changed. Stock is its sum: reserved = Σ reserve - Σ release - Σ ship, shipped = Σ ship, available = initial - Σ reserve + Σ release.
CREATE TABLE stock_moves (
  order_id uuid        NOT NULL,
  sku      text        NOT NULL,
  kind     text        NOT NULL CHECK (kind IN ('reserve', 'release', 'ship')),
  quantity bigint      NOT NULL CHECK (quantity > 0),
  moved_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (order_id, sku, kind),
  FOREIGN KEY (order_id, sku) REFERENCES reservations
);

-- What was moved before there was a ledger. Of a reservation that was released both moves are gone, and add up to nothing.
INSERT INTO stock_moves (order_id, sku, kind, quantity, moved_at)
SELECT order_id, sku, 'reserve', quantity, updated_at FROM reservations WHERE state IN ('held', 'shipped')
UNION ALL
SELECT order_id, sku, 'ship', quantity, updated_at FROM reservations WHERE state = 'shipped';

GRANT SELECT, INSERT ON stock_moves TO orders;

-- +goose Down
DROP TABLE stock_moves;
