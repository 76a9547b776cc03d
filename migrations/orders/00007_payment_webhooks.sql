-- +goose Up

-- The reports of payment providers that were taken. A report that is sent again finds its row, which was committed with the
-- message about it, and makes no second one.
CREATE TABLE payment_webhooks (
  provider    text        NOT NULL CHECK (provider <> ''),
  event_id    text        NOT NULL CHECK (octet_length(event_id) BETWEEN 1 AND 255),
  received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (provider, event_id)
);

CREATE INDEX payment_webhooks_age ON payment_webhooks (received_at);

-- To note a report, and to forget it when it is old.
GRANT SELECT, INSERT, DELETE ON payment_webhooks TO orders;

-- +goose Down
DROP TABLE payment_webhooks;
