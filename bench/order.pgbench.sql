-- One order and its outbox row in one transaction, as the api writes them: the same tables, locks and columns.
\set user random(1, 20000)
BEGIN;
SELECT pg_try_advisory_xact_lock(hashtextextended('create-bench-' || :user::text || gen_random_uuid(), 0));
WITH stored AS (
  INSERT INTO idempotency_keys (user_id, operation, key, request_hash, status, location, etag, body)
  VALUES ('pgbench-' || :user::text, 'POST /v1/orders', gen_random_uuid()::text, sha256('body'), 201, '/v1/orders/x', '"1"', repeat('x', 400)::bytea)
  ON CONFLICT DO NOTHING
)
SELECT sku, name, unit_price, currency FROM products WHERE sku = 'sku-mug';
WITH id AS MATERIALIZED (
  SELECT gen_random_uuid() AS id
), seq AS (
  INSERT INTO user_sequences (user_id, last_seq) VALUES ('pgbench-' || :user::text, 1)
  ON CONFLICT (user_id) DO UPDATE SET last_seq = user_sequences.last_seq + 1
  RETURNING last_seq
), placed AS (
  INSERT INTO orders (id, user_id, user_seq, status, currency, total, email, payment_method, created_at, updated_at)
  SELECT id.id, 'pgbench-' || :user::text, seq.last_seq, 'pending', 'EUR', 2500, 'pgbench@example.com', 'pm_ok', now(), now() FROM id, seq
), items AS (
  INSERT INTO order_items (order_id, sku, line, name, quantity, unit_price)
  SELECT id.id, 'sku-mug', 1, 'Enamel mug', 1, 1250 FROM id
)
INSERT INTO order_history (order_id, version, kind, to_status, at)
SELECT id.id, 1, 'placed', 'pending', now() FROM id;
WITH locked AS MATERIALIZED (
  SELECT pg_advisory_xact_lock(hashtextextended('pgbench-' || :user::text, 'outbox'::regclass::oid::bigint))
)
INSERT INTO outbox (id, topic, key, type, content_type, headers, payload)
SELECT gen_random_uuid(), 'orders', 'pgbench-' || :user::text, 'order.placed.v1', 'application/json', '{}', repeat('x', 350)::bytea
FROM (SELECT count(*) FROM locked) AS l;
COMMIT;
