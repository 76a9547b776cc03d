-- +goose Up
GRANT USAGE ON SCHEMA warehouse TO warehouse, warehouse_relay;
GRANT SELECT, INSERT, UPDATE (state, shipped_at) ON shipments      TO warehouse;
GRANT SELECT, INSERT, UPDATE (picked)            ON shipment_items TO warehouse;

-- +goose Down
REVOKE ALL ON shipment_items, shipments FROM warehouse;
