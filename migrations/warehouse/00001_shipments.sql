-- +goose Up
CREATE TABLE shipments (
  id         uuid        PRIMARY KEY,
  order_id   uuid        NOT NULL UNIQUE, -- the second wall behind processed_messages
  user_id    text        NOT NULL,
  state      text        NOT NULL CHECK (state IN ('packing', 'shipped')),
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  shipped_at timestamptz,
  CHECK ((state = 'shipped') = (shipped_at IS NOT NULL))
);

CREATE INDEX shipments_packing ON shipments (created_at) WHERE state = 'packing';

-- The pick list: what to take from the shelves, a line each.
CREATE TABLE shipment_items (
  shipment_id uuid   NOT NULL REFERENCES shipments,
  line        int    NOT NULL CHECK (line > 0),
  sku         text   NOT NULL,
  name        text   NOT NULL,
  quantity    bigint NOT NULL CHECK (quantity > 0),
  picked      bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (shipment_id, line),
  CHECK (picked BETWEEN 0 AND quantity)
);

-- +goose Down
DROP TABLE shipment_items, shipments;
