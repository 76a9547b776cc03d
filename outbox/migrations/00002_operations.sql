-- +goose Up

-- What people decided about messages, for good: rows outlive what they are about.
CREATE TABLE outbox_audit (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    action     text        NOT NULL CHECK (action IN ('release', 'discard', 'replay', 'forget')),
    by         text        NOT NULL,
    reason     text        NOT NULL DEFAULT '',
    relay      text        NOT NULL,
    topic      text,
    key        text,
    message_id uuid,
    messages   bigint
);

ALTER TABLE outbox_replays ADD COLUMN until timestamptz;

-- When the newest of the messages up to here was acknowledged or put aside, by the relay's clock.
ALTER TABLE outbox_cursor ADD COLUMN published_at timestamptz;

-- Messages published behind a later one of their key: how many, and the last of them.
ALTER TABLE outbox_lease
    ADD COLUMN violations   bigint NOT NULL DEFAULT 0,
    ADD COLUMN violation_at timestamptz,
    ADD COLUMN violation_id uuid;

-- As before, with the audit. Grant again after this migration.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION outbox_grant(p_writer name, p_relay name)
RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    leaf regclass;
BEGIN
    IF p_writer IS NOT NULL THEN
        EXECUTE format('GRANT INSERT (id, topic, key, type, content_type, headers, payload) ON outbox TO %I', p_writer);
    END IF;
    IF p_relay IS NOT NULL THEN
        EXECUTE format('GRANT SELECT, UPDATE (txid), TRUNCATE ON outbox TO %I', p_relay);
        FOR leaf IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'outbox'::regclass LOOP
            EXECUTE format('GRANT SELECT, TRUNCATE ON %s TO %I', leaf, p_relay);
        END LOOP;
        EXECUTE format('GRANT SELECT ON SEQUENCE %s TO %I', pg_get_serial_sequence('outbox', 'seq'), p_relay);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_lease, outbox_cursor, outbox_parked,
            outbox_replays, outbox_identity, outbox_crash TO %I', p_relay);
        EXECUTE format('GRANT SELECT, INSERT ON outbox_audit TO %I', p_relay);
    END IF;
END
$$;
-- +goose StatementEnd
