-- +goose Up

-- The answer to a request, stored in the transaction that did what was asked: either both exist or neither.
CREATE TABLE idempotency_keys (
  user_id      text        NOT NULL,
  operation    text        NOT NULL,
  key          text        NOT NULL CHECK (octet_length(key) BETWEEN 1 AND 255),
  request_hash bytea       NOT NULL CHECK (octet_length(request_hash) = 32),
  status       smallint    NOT NULL CHECK (status BETWEEN 200 AND 299), -- what failed is not stored: it may be tried again
  location     text        NOT NULL DEFAULT '',
  etag         text        NOT NULL DEFAULT '',
  body         bytea       NOT NULL,
  created_at   timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (user_id, operation, key)
);

CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);

-- Only the SHA-256 of a key is kept. Keys are long and random, so a slow hash would protect nothing more.
CREATE TABLE api_keys (
  hash       bytea       PRIMARY KEY CHECK (octet_length(hash) = 32),
  role       text        NOT NULL CHECK (role IN ('service', 'user')),
  user_id    text        CHECK (user_id ~ '^[A-Za-z0-9._:@-]{1,64}$'),
  name       text        NOT NULL CHECK (name <> ''),
  created_at timestamptz NOT NULL DEFAULT now(),
  revoked_at timestamptz,
  CHECK ((role = 'user') = (user_id IS NOT NULL))
);

-- Secrets that all api processes share and nobody configures. The cursor secret signs the cursors of lists: 244 random bits.
CREATE TABLE api_secrets (
  name   text  PRIMARY KEY,
  secret bytea NOT NULL CHECK (octet_length(secret) = 32)
);
INSERT INTO api_secrets (name, secret)
VALUES ('cursor', sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')));

-- +goose Down
DROP TABLE api_secrets, api_keys, idempotency_keys;
