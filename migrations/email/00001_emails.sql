-- +goose Up

-- One row per email that an order asks for. The handler of an event inserts it; the sender delivers it afterwards, because a
-- mail cannot join a transaction.
CREATE TABLE emails (
  id              uuid        PRIMARY KEY,
  order_id        uuid        NOT NULL,
  user_id         text        NOT NULL,
  kind            text        NOT NULL CHECK (kind IN ('confirmation', 'failure', 'shipped')),
  to_address      text        NOT NULL,
  data            jsonb       NOT NULL, -- what the template shows
  state           text        NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'sending', 'sent', 'failed')),
  message_id      text        NOT NULL UNIQUE, -- the Message-ID header, the same at every try: the receiver drops a second copy
  attempts        int         NOT NULL DEFAULT 0 CHECK (attempts >= 0),
  next_attempt_at timestamptz NOT NULL DEFAULT clock_timestamp(), -- while sending: the end of the lease
  lease_token     uuid,
  provider        text,       -- the one that took it, or the last one that was tried
  error           text,
  created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
  updated_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
  sent_at         timestamptz,
  UNIQUE (order_id, kind), -- the second wall behind processed_messages
  CHECK ((state = 'sending') = (lease_token IS NOT NULL)),
  CHECK ((state = 'sent') = (sent_at IS NOT NULL))
) WITH (fillfactor = 80);

-- What there is to do. A row that is done leaves the index, so its size follows the backlog and not the history.
CREATE INDEX emails_due ON emails (next_attempt_at) WHERE state IN ('queued', 'sending');

-- +goose Down
DROP TABLE emails;
