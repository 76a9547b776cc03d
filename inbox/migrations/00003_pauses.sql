-- +goose Up

-- A group that is paused: its consumers leave it in Kafka, so that its offsets can be set, until the row is gone or its
-- lease has ended. The lease is renewed by who paused the group: a tool that died pauses nothing for ever.
CREATE TABLE inbox_pauses (
    consumer_group text        PRIMARY KEY,
    token          uuid        NOT NULL, -- of who paused it
    by             text        NOT NULL,
    reason         text        NOT NULL,
    since          timestamptz NOT NULL DEFAULT clock_timestamp(),
    leased_until   timestamptz NOT NULL
);

-- The consumers that have stopped for a pause, and a heartbeat of each.
CREATE TABLE inbox_paused_consumers (
    consumer_group text        NOT NULL,
    consumer       uuid        NOT NULL, -- made at its start
    token          uuid        NOT NULL, -- of the pause
    name           text        NOT NULL, -- host and process
    seen_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer_group, consumer)
);

-- +goose Down
DROP TABLE inbox_paused_consumers;
DROP TABLE inbox_pauses;
