-- +goose Up

-- Least privilege: what a role does not do it may not do. The catalog and the API keys are written by the owner only.
GRANT SELECT                                                                                     ON products         TO orders;
GRANT SELECT, UPDATE (available, reserved, shipped)                                              ON stock            TO orders;
GRANT SELECT, INSERT, UPDATE (last_seq)                                                          ON user_sequences   TO orders;
GRANT SELECT, INSERT, UPDATE (status, reason, cancel_requested_at, version, updated_at)          ON orders           TO orders;
GRANT SELECT, INSERT                                                                             ON order_items      TO orders;
GRANT SELECT, INSERT                                                                             ON order_history    TO orders;
GRANT SELECT, INSERT, UPDATE (state, updated_at)                                                 ON reservations     TO orders;
GRANT SELECT, INSERT, UPDATE (intent_id, status, refund_id, reason, updated_at)                  ON payments         TO orders;
GRANT SELECT, INSERT, DELETE                                                                     ON idempotency_keys TO orders;
GRANT SELECT                                                                                     ON api_keys         TO orders;
GRANT SELECT                                                                                     ON api_secrets      TO orders;

-- +goose Down
REVOKE ALL ON products, stock, user_sequences, orders, order_items, order_history, reservations, payments,
  idempotency_keys, api_keys, api_secrets FROM orders;
