-- +goose Up

-- A ring of eight leaves, one for each ten minutes, reclaimed by TRUNCATE. Rows are immutable: nothing is ever updated
-- or deleted, so there is no bloat and a held snapshot costs nothing.
CREATE TABLE outbox (
    slot         smallint    NOT NULL DEFAULT (floor(extract(epoch FROM clock_timestamp()) / 600)::bigint % 8),
    txid         xid8        NOT NULL DEFAULT pg_current_xact_id(),
    -- Never give this sequence a CACHE: the order inside a key depends on it.
    seq          bigint      GENERATED ALWAYS AS IDENTITY,
    id           uuid        NOT NULL,
    topic        text        NOT NULL,
    key          text        NOT NULL,
    type         text        NOT NULL,
    content_type text        NOT NULL,
    headers      jsonb       NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(headers) = 'object'),
    payload      bytea       NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp()
) PARTITION BY LIST (slot);

CREATE TABLE outbox_0 PARTITION OF outbox FOR VALUES IN (0);
CREATE TABLE outbox_1 PARTITION OF outbox FOR VALUES IN (1);
CREATE TABLE outbox_2 PARTITION OF outbox FOR VALUES IN (2);
CREATE TABLE outbox_3 PARTITION OF outbox FOR VALUES IN (3);
CREATE TABLE outbox_4 PARTITION OF outbox FOR VALUES IN (4);
CREATE TABLE outbox_5 PARTITION OF outbox FOR VALUES IN (5);
CREATE TABLE outbox_6 PARTITION OF outbox FOR VALUES IN (6);
CREATE TABLE outbox_7 PARTITION OF outbox FOR VALUES IN (7);

CREATE INDEX ON outbox (txid, seq);

-- One row for each relay name. The epoch grows with every change of leader; a write under an older one is refused.
CREATE TABLE outbox_lease (
    relay      text        PRIMARY KEY,
    epoch      bigint      NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    holder     text        NOT NULL DEFAULT '',
    expires_at timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 50);

-- How far each relay is: everything visible at prev is published, and of what is visible at cur and was not at prev,
-- everything up to last_seq. Append-only, read from its end: updating one row here would bloat under a held snapshot.
CREATE TABLE outbox_cursor (
    relay    text        NOT NULL REFERENCES outbox_lease ON DELETE CASCADE,
    epoch    bigint      NOT NULL,
    n        bigint      NOT NULL,
    prev     pg_snapshot NOT NULL,
    cur      pg_snapshot,
    last_seq bigint      NOT NULL DEFAULT 0,
    hi_seq   bigint      NOT NULL DEFAULT 0,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (relay, epoch, n)
);

-- Messages put aside, complete, because the ring forgets: the one that Kafka refused, and the later ones of its key.
CREATE TABLE outbox_parked (
    relay        text        NOT NULL REFERENCES outbox_lease ON DELETE CASCADE,
    seq          bigint      NOT NULL,
    id           uuid        NOT NULL,
    topic        text        NOT NULL,
    key          text        NOT NULL,
    type         text        NOT NULL,
    content_type text        NOT NULL,
    headers      jsonb       NOT NULL,
    payload      bytea       NOT NULL,
    created_at   timestamptz NOT NULL,
    state        text        NOT NULL DEFAULT 'parked' CHECK (state IN ('parked', 'released', 'discarded')),
    error        text        NOT NULL DEFAULT '',
    attempts     integer     NOT NULL DEFAULT 0,
    parked_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    settled_by   text        NOT NULL DEFAULT '',
    reason       text        NOT NULL DEFAULT '',
    settled_at   timestamptz,
    PRIMARY KEY (relay, seq)
);

CREATE INDEX ON outbox_parked (relay, topic, key, seq) WHERE state <> 'discarded';

-- Orders to publish again what is still in the ring. The leader works them between two pages.
CREATE TABLE outbox_replays (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relay        text        NOT NULL REFERENCES outbox_lease ON DELETE CASCADE,
    topic        text,
    key          text,
    since        timestamptz NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    done_at      timestamptz,
    messages     bigint      NOT NULL DEFAULT 0
);

-- The server these rows were written in: transaction ids mean nothing in another one.
CREATE TABLE outbox_identity (
    one               boolean PRIMARY KEY DEFAULT true CHECK (one),
    system_identifier bigint  NOT NULL
);

INSERT INTO outbox_identity (system_identifier) SELECT system_identifier FROM pg_control_system();

-- A crash of Postgres empties an unlogged table. A relay that no longer finds the token it knew forgets what it has in
-- memory, because the ids of transactions that the crash undid are given out a second time.
CREATE UNLOGGED TABLE outbox_crash (
    one   boolean PRIMARY KEY DEFAULT true CHECK (one),
    token uuid    NOT NULL
);

INSERT INTO outbox_lease (relay) VALUES ('relay');

-- '3:3:' is the snapshot in which no transaction has ended yet. A snapshot taken here would leave out this very
-- transaction.
INSERT INTO outbox_cursor (relay, epoch, n, prev) VALUES ('relay', 0, 0, '3:3:');

-- Which server this is, and since when: its timeline, its start, and the token that a crash takes away. It changes with a
-- crash, a restart, a promotion and a restore, also when a connection pooler hides them.
CREATE FUNCTION outbox_incarnation()
RETURNS text
LANGUAGE sql
STABLE
SET search_path FROM CURRENT
AS $$
    SELECT left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
        || ' ' || extract(epoch FROM pg_postmaster_start_time())
        || ' ' || coalesce((SELECT c.token::text FROM outbox_crash c), '')
$$;

-- What is visible now and was not at p_prev, at most 500 rows of each kind: of transactions that began after p_prev
-- (branch 1) and of those open at p_prev (branch 2). Always at least one row, for the snapshot and the identity.
--
-- A function, because the plan must hold whatever the statistics say: index scans on every leaf, merged, never a sort.
-- The limits are literals: a parameter makes the planner expect many rows and compile the query. Payloads above 8 KiB
-- stay behind (payload is null), so that a poll is small; the relay then fetches by ctid.
-- +goose StatementBegin
CREATE FUNCTION outbox_poll(p_prev pg_snapshot)
RETURNS TABLE (
    snap text, incarnation text, branch smallint, seq bigint, id uuid, topic text, key text, type text,
    content_type text, headers jsonb, payload bytea, created_at timestamptz
)
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH s AS MATERIALIZED (SELECT pg_current_snapshot() AS snap, outbox_incarnation() AS incarnation)
    SELECT s.snap::text, s.incarnation, e.branch, e.seq, e.id, e.topic, e.key, e.type, e.content_type, e.headers,
        CASE WHEN octet_length(e.payload) <= 8192 THEN e.payload END, e.created_at
    FROM s LEFT JOIN LATERAL (
        (SELECT 1::smallint AS branch, o.seq, o.id, o.topic, o.key, o.type, o.content_type, o.headers, o.payload, o.created_at
        FROM outbox o
        WHERE o.txid >= pg_snapshot_xmax(p_prev)
        ORDER BY o.txid, o.seq
        LIMIT 500)
        UNION ALL
        (SELECT 2::smallint, r.*
        FROM pg_snapshot_xip(p_prev) AS x (txid)
        CROSS JOIN LATERAL (
            SELECT o.seq, o.id, o.topic, o.key, o.type, o.content_type, o.headers, o.payload, o.created_at
            FROM outbox o
            WHERE o.txid = x.txid
            ORDER BY o.txid, o.seq
            LIMIT 500
        ) AS r
        WHERE pg_visible_in_snapshot(x.txid, s.snap)
        LIMIT 500)
    ) AS e ON true;
END
$$;
-- +goose StatementEnd

-- Grants what a writer's role and a relay's role need, and nothing else. Either may be null.
-- +goose StatementBegin
CREATE FUNCTION outbox_grant(p_writer name, p_relay name)
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
    END IF;
END
$$;
-- +goose StatementEnd
