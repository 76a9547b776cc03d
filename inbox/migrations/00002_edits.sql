-- +goose Up

ALTER TABLE inbox_audit
    DROP CONSTRAINT inbox_audit_action_check,
    ADD CONSTRAINT inbox_audit_action_check CHECK (action IN ('replay', 'discard', 'edit', 'import'));

-- The payloads that people replaced, in order: the first one of a message is the payload its record brought. They stay
-- when the message has met its fate; who replaced them, and why, is in inbox_audit.
CREATE TABLE inbox_edits (
    audit_id       bigint PRIMARY KEY REFERENCES inbox_audit,
    consumer_group text   NOT NULL,
    event_id       uuid   NOT NULL,
    payload        bytea                                                  -- NULL: there was none
);

CREATE INDEX inbox_edits_message ON inbox_edits (consumer_group, event_id, audit_id);

-- +goose Down
DROP TABLE inbox_edits;
DELETE FROM inbox_audit WHERE action IN ('edit', 'import');
ALTER TABLE inbox_audit
    DROP CONSTRAINT inbox_audit_action_check,
    ADD CONSTRAINT inbox_audit_action_check CHECK (action IN ('replay', 'discard'));
