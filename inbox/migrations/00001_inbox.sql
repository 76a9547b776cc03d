-- +goose Up

-- The fate of every message, one row for each group. A ring of 32 leaves, one for each day of the event id's own
-- timestamp, reclaimed by TRUNCATE. The slot follows from the id, so one id always meets the same leaf and the primary
-- key stays exact whatever the clocks say.
CREATE TABLE processed_messages (
    slot           smallint    NOT NULL,
    consumer_group text        NOT NULL,
    event_id       uuid        NOT NULL,
    payload_hash   bytea       NOT NULL,
    state          text        NOT NULL CHECK (state IN ('done', 'parked', 'discarded')),
    processed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer_group, event_id, slot)
) PARTITION BY LIST (slot);

-- +goose StatementBegin
DO $$
BEGIN
    FOR i IN 0..31 LOOP
        EXECUTE format('CREATE TABLE processed_messages_%s PARTITION OF processed_messages FOR VALUES IN (%s)', i, i);
    END LOOP;
END
$$;
-- +goose StatementEnd

-- One row for each key that waits. Its lock orders everybody who parks, drains or replays messages of the key.
CREATE TABLE inbox_holds (
    consumer_group text        NOT NULL,
    topic          text        NOT NULL,
    key            text        NOT NULL,
    state          text        NOT NULL CHECK (state IN ('held', 'dead')),
    parked         integer     NOT NULL CHECK (parked >= 0), -- messages behind this hold, its head included
    type           text        NOT NULL,                     -- of the head
    error_class    text,                                     -- of the head
    fingerprint    text,                                     -- of the head's error
    since          timestamptz NOT NULL DEFAULT clock_timestamp(),
    tries          integer     NOT NULL DEFAULT 0,           -- of the head since it was parked; sets the delay
    next_at        timestamptz NOT NULL,
    lease_token    uuid,
    leased_until   timestamptz,
    PRIMARY KEY (consumer_group, topic, key)
) WITH (fillfactor = 70);

CREATE INDEX inbox_holds_due ON inbox_holds (consumer_group, next_at) WHERE state = 'held';

-- The truth about messages put aside, complete, because Kafka forgets.
CREATE TABLE parked_messages (
    id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- the order inside a key
    consumer_group  text        NOT NULL,
    topic           text        NOT NULL,
    key             text        NOT NULL,
    hold_key        text,                                                 -- NULL: dead, and its key was released
    kafka_partition integer     NOT NULL,
    kafka_offset    bigint      NOT NULL,
    event_id        uuid        NOT NULL,
    type            text        NOT NULL,
    record_key      bytea,
    record_time     timestamptz NOT NULL,
    headers         jsonb       NOT NULL CHECK (jsonb_typeof(headers) = 'array'),
    payload         bytea,                                                -- NULL: the record had none
    state           text        NOT NULL CHECK (state IN ('waiting', 'held', 'dead')),
    attempts        integer     NOT NULL DEFAULT 0,
    counted         integer     NOT NULL DEFAULT 0,                       -- tries that count toward dead
    error_class     text,
    error           text,
    fingerprint     text,
    first_failed_at timestamptz,
    last_failed_at  timestamptz,
    parked_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (consumer_group, event_id),
    CHECK (hold_key IS NOT NULL OR state = 'dead'),
    -- Turns a message stranded without a hold into an error.
    FOREIGN KEY (consumer_group, topic, hold_key) REFERENCES inbox_holds (consumer_group, topic, key)
);

CREATE INDEX parked_messages_line ON parked_messages (consumer_group, topic, hold_key, id);

-- What people, and handlers, did to messages instead of applying them.
CREATE TABLE inbox_audit (
    id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at             timestamptz NOT NULL DEFAULT clock_timestamp(),
    action         text        NOT NULL CHECK (action IN ('replay', 'discard')),
    consumer_group text        NOT NULL,
    topic          text        NOT NULL,
    key            text        NOT NULL,
    event_id       uuid        NOT NULL,
    parked_id      bigint,
    reason         text        NOT NULL DEFAULT '',
    by             text        NOT NULL
);

-- Empties the leaf of the day that lies furthest from every id a consumer accepts (28 days back, 1 ahead), with more
-- than a day to spare on both sides. It never waits for a lock: a waiting TRUNCATE would stall the inserts behind it.
-- SECURITY DEFINER because TRUNCATE is the owner's: consumers need not have it.
-- +goose StatementBegin
CREATE FUNCTION inbox_reclaim() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    leaf  text := format('processed_messages_%s', (floor(extract(epoch FROM clock_timestamp()) / 86400)::bigint + 2) % 32);
    dirty boolean;
BEGIN
    EXECUTE format('SELECT EXISTS (SELECT FROM %I)', leaf) INTO dirty;
    IF NOT dirty THEN
        RETURN false;
    END IF;
    EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE NOWAIT', leaf);
    EXECUTE format('TRUNCATE %I', leaf);
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END
$$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION inbox_reclaim();
DROP TABLE inbox_audit;
DROP TABLE parked_messages;
DROP TABLE inbox_holds;
DROP TABLE processed_messages;
