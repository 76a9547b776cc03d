package inbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Event is a message with its payload decoded.
type Event[T any] struct {
	Message
	Data T
}

// Typed returns the route of one type whose payloads are JSON and fit T. The handler gets them decoded, those of older
// types too: each has an [Upcast], so one handler reads what was written before a deploy and after it. Policy and Check may
// be set on the route.
//
// Fields that T does not have are ignored. A payload that does not fit, or is null, makes the message dead with class
// [ClassUndecodable]. Where T has a method Key() string, as payloads for outbox.JSON have, the record's key must be what it
// returns, or the message is dead with class [ClassKeyMismatch].
func Typed[T any](topic, typ string, handle func(ctx context.Context, tx pgx.Tx, e Event[T]) error, older ...Older[T]) Route {
	rt := Route{Topic: topic, Type: typ, older: typesOf(older)}
	if handle == nil {
		return rt // NewConsumer says what is missing
	}
	read := readerOf(typ, older)
	rt.Handle = func(ctx context.Context, tx pgx.Tx, msg Message) error {
		e, err := read(msg)
		if err != nil {
			return err
		}
		return handle(ctx, tx, e)
	}
	return rt
}

// TypedBatch is [Typed] for a handler of many messages; see [BatchHandler].
func TypedBatch[T any](topic, typ string, handle func(ctx context.Context, tx pgx.Tx, events []Event[T]) error, older ...Older[T]) Route {
	rt := Route{Topic: topic, Type: typ, older: typesOf(older)}
	if handle == nil {
		return rt // NewConsumer says what is missing
	}
	read := readerOf(typ, older)
	rt.HandleBatch = func(ctx context.Context, tx pgx.Tx, msgs []Message) error {
		events := make([]Event[T], len(msgs))
		for i, msg := range msgs {
			var err error
			if events[i], err = read(msg); err != nil {
				return err
			}
		}
		return handle(ctx, tx, events)
	}
	return rt
}

// Older reads the payloads of an older type as T; see [Upcast].
type Older[T any] struct {
	typ  string
	read func(payload []byte) (T, error)
}

// Upcast makes a route of a type read an older major version of it, such as "order.placed.v1". An error of up makes the
// message dead with class [ClassUndecodable]. To reach back further, list one for each older version; they may call each
// other.
func Upcast[From, To any](typ string, up func(From) (To, error)) Older[To] {
	return Older[To]{typ, func(payload []byte) (To, error) {
		from, err := decodeAs[From](typ, payload)
		if err != nil {
			var none To
			return none, err
		}
		to, err := up(from)
		if err != nil {
			return to, fmt.Errorf("upcast %s: %w", typ, err)
		}
		return to, nil
	}}
}

func typesOf[T any](older []Older[T]) []string {
	types := make([]string, len(older))
	for i, o := range older {
		types[i] = o.typ
	}
	return types
}

// readerOf returns what reads messages of typ and of the older types.
func readerOf[T any](typ string, older []Older[T]) func(Message) (Event[T], error) {
	readers := map[string]func([]byte) (T, error){}
	for _, o := range older {
		readers[o.typ] = o.read
	}
	readers[typ] = func(payload []byte) (T, error) { return decodeAs[T](typ, payload) }
	return func(msg Message) (Event[T], error) {
		data, err := readers[msg.Type](msg.Payload)
		if err != nil {
			return Event[T]{}, PermanentAs(ClassUndecodable, err)
		}
		if keyed, ok := any(data).(interface{ Key() string }); ok && keyed.Key() != msg.Key {
			return Event[T]{}, PermanentAs(ClassKeyMismatch, errors.New("the record's key is not the payload's"))
		}
		return Event[T]{msg, data}, nil
	}
}

func decodeAs[T any](typ string, payload []byte) (T, error) {
	var data T
	err := json.Unmarshal(payload, &data)
	if err == nil && string(bytes.TrimSpace(payload)) == "null" {
		err = errors.New("the payload is null")
	}
	if err != nil {
		return data, fmt.Errorf("decode %s: %w", typ, err)
	}
	return data, nil
}
