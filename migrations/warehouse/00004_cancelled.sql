-- +goose Up

-- A shipment is cancelled when its order is refunded before there was one. The row keeps a late one from being made.
ALTER TABLE shipments DROP CONSTRAINT shipments_state_check;
ALTER TABLE shipments ADD CONSTRAINT shipments_state_check CHECK (state IN ('packing', 'shipped', 'cancelled'));

-- +goose Down
DELETE FROM shipments WHERE state = 'cancelled';
ALTER TABLE shipments DROP CONSTRAINT shipments_state_check;
ALTER TABLE shipments ADD CONSTRAINT shipments_state_check CHECK (state IN ('packing', 'shipped'));
