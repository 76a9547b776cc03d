-- +goose Up
CREATE TABLE products (
  sku        text        PRIMARY KEY CHECK (sku ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'),
  name       text        NOT NULL CHECK (name <> ''),
  unit_price bigint      NOT NULL CHECK (unit_price > 0),   -- minor units
  currency   text        NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
  created_at timestamptz NOT NULL DEFAULT now()
);

-- Every unit a product ever had is in exactly one of three places. The equation is checked on every write, so a statement
-- that loses or invents a unit fails instead of being found later.
CREATE TABLE stock (
  sku       text   PRIMARY KEY REFERENCES products,
  initial   bigint NOT NULL CHECK (initial >= 0),
  available bigint NOT NULL CHECK (available >= 0),
  reserved  bigint NOT NULL DEFAULT 0 CHECK (reserved >= 0),
  shipped   bigint NOT NULL DEFAULT 0 CHECK (shipped >= 0),
  CHECK (available + reserved + shipped = initial)
) WITH (fillfactor = 50); -- few rows, updated often: room on the page keeps the updates heap-only

-- +goose Down
DROP TABLE stock, products;
