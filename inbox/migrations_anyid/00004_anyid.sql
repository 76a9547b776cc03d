-- +goose Up

-- The fate of every message whose id says nothing about its age: no ring, so an id is known as long as its row is there.
-- The slot stays because every statement names it; the key has no need of it. What a ring remembered is kept.
CREATE TABLE processed_messages_anyid (
    slot           smallint    NOT NULL,
    consumer_group text        NOT NULL,
    event_id       uuid        NOT NULL,
    payload_hash   bytea       NOT NULL,
    state          text        NOT NULL CHECK (state IN ('done', 'parked', 'discarded')),
    processed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer_group, event_id)
) WITH (autovacuum_vacuum_scale_factor = 0.02);

INSERT INTO processed_messages_anyid (slot, consumer_group, event_id, payload_hash, state, processed_at)
SELECT slot, consumer_group, event_id, payload_hash, state, processed_at FROM processed_messages;

DROP TABLE processed_messages;
ALTER TABLE processed_messages_anyid RENAME TO processed_messages;

-- For consumers, which delete what is older than their Options.Remember. Parked messages are remembered until they are not.
CREATE INDEX processed_messages_age ON processed_messages (consumer_group, processed_at) WHERE state <> 'parked';

-- There are no leaves to empty.
CREATE OR REPLACE FUNCTION inbox_reclaim() RETURNS boolean
LANGUAGE sql AS 'SELECT false';

-- +goose Down
-- The ring does not come back: it has no place for these ids. The first migration's Down drops this table as well.
