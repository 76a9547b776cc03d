-- +goose Up

-- One row per lane: what engines claim. Claiming instances instead would search past everything that waits behind a
-- blocked head. token is set while an engine holds the lane, until run_at; rev grows with every claim and fences the
-- engine that held it before. run_at is NULL when nothing is to be done without being asked.
CREATE TABLE saga_lanes (
	lane    text PRIMARY KEY,
	pending int NOT NULL DEFAULT 0 CHECK (pending >= 0),
	run_at  timestamptz,
	token   uuid,
	rev     bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 70);

CREATE INDEX saga_lanes_run_at ON saga_lanes (run_at) WHERE run_at IS NOT NULL;

-- n orders a lane: it is drawn under the lane's row lock, so it follows the order of commits.
CREATE TABLE saga_instances (
	id                  uuid PRIMARY KEY,
	n                   bigint GENERATED ALWAYS AS IDENTITY,
	lane                text NOT NULL,
	definition          text NOT NULL,
	version             int NOT NULL CHECK (version > 0),
	data                jsonb NOT NULL,
	state               text NOT NULL DEFAULT 'waiting' CHECK (state IN
		('waiting', 'running', 'compensating', 'in_doubt', 'stuck', 'completed', 'compensated')),
	step                int NOT NULL DEFAULT 0,
	step_name           text NOT NULL DEFAULT '',
	attempt             int NOT NULL DEFAULT 0 CHECK (attempt >= 0),
	failure_kind        text CHECK (failure_kind IN ('rejected', 'cancelled', 'deadline', 'operator')),
	failure_step        text,
	failure_reason      text,
	stuck_for           text CHECK (stuck_for IN ('no_code', 'attempts', 'crashes', 'error')),
	error               text,
	forward_only        boolean NOT NULL DEFAULT false,
	cancel_requested_at timestamptz,
	created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
	started_at          timestamptz,
	deadline_at         timestamptz,
	updated_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
	ended_at            timestamptz, -- when OnFailed ran; it stays when a late success opens the saga again
	finished_at         timestamptz,
	rev                 bigint NOT NULL DEFAULT 0,
	crashes             int NOT NULL DEFAULT 0, -- engines that went silent at this instance since it last moved
	CHECK ((finished_at IS NOT NULL) = (state IN ('completed', 'compensated'))),
	CHECK ((stuck_for IS NOT NULL) = (state = 'stuck')),
	CHECK (failure_kind IS NOT NULL OR state NOT IN ('compensating', 'compensated')),
	CHECK (failure_kind IS NULL OR state IN ('compensating', 'compensated', 'stuck'))
) WITH (fillfactor = 70);

-- finished_at is the only indexed column that an update of a live instance can change, so those updates stay HOT
-- except where an instance enters or leaves the states that people look for.
CREATE INDEX saga_instances_head ON saga_instances (lane, n) WHERE finished_at IS NULL;
CREATE INDEX saga_instances_attention ON saga_instances (state, n) WHERE state IN ('compensating', 'in_doubt', 'stuck');

-- One row per step and direction. A remote action or compensation has its row committed as intent before the call.
--   intent    a call may be under way, or was when an engine died
--   unknown   a call ended without saying what it did
--   absent    it is certain that no call did anything
--   skipped   passed over by an operator
CREATE TABLE saga_journal (
	saga_id    uuid NOT NULL,
	step       int NOT NULL,
	undo       boolean NOT NULL,
	name       text NOT NULL,
	state      text NOT NULL CHECK (state IN ('intent', 'unknown', 'absent', 'succeeded', 'rejected', 'skipped')),
	attempt    int NOT NULL DEFAULT 1,
	lost       int NOT NULL DEFAULT 0, -- calls whose engine died before the outcome
	key        text,
	key_since  timestamptz, -- the first call that may have reached the other side: starts the key window
	intent_at  timestamptz NOT NULL,
	outcome_at timestamptz,
	result     jsonb,
	saved      jsonb,
	answer     jsonb, -- what an operator or a late reply said, until the engine has taken it in
	error      text,
	PRIMARY KEY (saga_id, step, undo)
) WITH (fillfactor = 80);

CREATE TABLE saga_audit (
	id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	saga_id uuid NOT NULL,
	at      timestamptz NOT NULL DEFAULT clock_timestamp(),
	action  text NOT NULL CHECK (action IN ('retry', 'resolve', 'compensate', 'skip', 'late')),
	actor   text NOT NULL CHECK (actor <> ''),
	reason  text NOT NULL CHECK (reason <> ''),
	was     text NOT NULL,
	rev     bigint NOT NULL
);

CREATE INDEX saga_audit_saga_id ON saga_audit (saga_id);
