-- +goose Up

-- Where to take the line from, as in 'C-07'. Lines are numbered in the order of a walk: by bin, then SKU.
ALTER TABLE shipment_items ADD COLUMN bin text NOT NULL;

-- +goose Down
ALTER TABLE shipment_items DROP COLUMN bin;
