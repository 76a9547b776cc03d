-- +goose Up

-- What an email is about never changes, and it is never deleted: it is the proof that it was sent once.
GRANT USAGE ON SCHEMA email TO email, email_relay;
GRANT SELECT, INSERT, UPDATE (state, attempts, next_attempt_at, lease_token, provider, error, updated_at, sent_at) ON emails TO email;

-- +goose Down
REVOKE ALL ON emails FROM email;
