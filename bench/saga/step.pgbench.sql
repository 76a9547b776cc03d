-- What one local step is by itself: its effect and its row in the journal, in a transaction.
BEGIN;
INSERT INTO effects (saga_id) VALUES (gen_random_uuid());
INSERT INTO saga_journal (saga_id, step, undo, name, state, attempt, intent_at, outcome_at)
VALUES (gen_random_uuid(), 0, false, 'one', 'succeeded', 1, clock_timestamp(), clock_timestamp())
ON CONFLICT DO NOTHING;
COMMIT;
