-- +goose Up
CREATE TABLE user_sequences (
  user_id  text   PRIMARY KEY,
  last_seq bigint NOT NULL CHECK (last_seq > 0)
) WITH (fillfactor = 80);

CREATE TABLE orders (
  id                  uuid        PRIMARY KEY, -- UUIDv7: sorts by time, so it is also the cursor of a list over all users
  user_id             text        NOT NULL CHECK (user_id ~ '^[A-Za-z0-9._:@-]{1,64}$'),
  user_seq            bigint      NOT NULL CHECK (user_seq > 0),
  status              text        NOT NULL CHECK (status IN ('pending', 'completed', 'shipped', 'rejected', 'payment_failed', 'cancelled', 'refunded')),
  currency            text        NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
  total               bigint      NOT NULL CHECK (total > 0), -- minor units
  email               text        NOT NULL,
  payment_method      text        NOT NULL,
  reason              text        NOT NULL DEFAULT '',
  cancel_requested_at timestamptz,
  version             bigint      NOT NULL DEFAULT 1 CHECK (version > 0), -- one more with every change; the ETag
  created_at          timestamptz NOT NULL,
  updated_at          timestamptz NOT NULL,
  UNIQUE (user_id, user_seq),
  -- A cancel that was accepted always wins: an order with one can never be completed.
  CHECK (cancel_requested_at IS NULL OR status NOT IN ('completed', 'shipped', 'refunded'))
) WITH (fillfactor = 85);

-- What an operator looks for first, among millions of orders that are done.
CREATE INDEX orders_pending ON orders (id) WHERE status = 'pending';

CREATE TABLE order_items (
  order_id   uuid   NOT NULL REFERENCES orders,
  sku        text   NOT NULL REFERENCES products,
  line       int    NOT NULL,                        -- as the client listed them
  name       text   NOT NULL,                        -- name and price as they were when the order was placed
  quantity   bigint NOT NULL CHECK (quantity BETWEEN 1 AND 1000),
  unit_price bigint NOT NULL CHECK (unit_price > 0), -- minor units
  PRIMARY KEY (order_id, sku)
);

-- Append-only: no role that serves may update or delete here. A row per version of the order.
CREATE TABLE order_history (
  order_id    uuid        NOT NULL REFERENCES orders,
  version     bigint      NOT NULL,
  kind        text        NOT NULL CHECK (kind IN ('placed', 'cancel_requested', 'status')),
  from_status text,
  to_status   text        NOT NULL,
  reason      text        NOT NULL DEFAULT '',
  at          timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (order_id, version),
  CHECK ((kind = 'placed') = (from_status IS NULL)),
  CHECK (CASE kind
    WHEN 'placed'           THEN to_status = 'pending'
    WHEN 'cancel_requested' THEN from_status = 'pending' AND to_status = 'pending'
    ELSE (from_status, to_status) IN (
      ('pending', 'completed'), ('pending', 'rejected'), ('pending', 'payment_failed'), ('pending', 'cancelled'),
      ('completed', 'shipped'), ('completed', 'refunded'), ('shipped', 'refunded'))
  END)
);

-- +goose Down
DROP TABLE order_history, order_items, orders, user_sequences;
