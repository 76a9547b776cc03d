-- What the consumer does for a batch of one message, but for Kafka and the look at the holds.
BEGIN;
INSERT INTO processed_messages (slot, consumer_group, event_id, payload_hash, state)
VALUES ((floor(extract(epoch FROM now()) / 86400)::bigint % 32)::smallint, 'pgbench', gen_random_uuid(), sha256('body'), 'done')
ON CONFLICT DO NOTHING;
INSERT INTO effects (key, id) VALUES ('user', gen_random_uuid());
COMMIT;
