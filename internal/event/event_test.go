package event_test

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/event/eventtest"
)

// payload is what every event type offers to a producer.
type payload interface {
	Topic() string
	Key() string
	Type() string
	Subject() string
}

// read decodes a golden payload into the type that carries it today. A version that is no longer written keeps its case.
func read(eventType string, data []byte) (payload, error) {
	switch eventType {
	case event.OrderPlacedV1:
		return decode[event.OrderPlaced](data)
	case event.OrderCancelRequestedV1:
		return decode[event.OrderCancelRequested](data)
	case event.OrderCompletedV1:
		return decode[event.OrderCompleted](data)
	case event.OrderFailedV1:
		return decode[event.OrderFailed](data)
	case event.OrderRefundRequestedV1:
		return decode[event.OrderRefundRequested](data)
	case event.OrderRefundedV1:
		return decode[event.OrderRefunded](data)
	case event.ShipmentCreatedV1:
		return decode[event.ShipmentCreated](data)
	case event.ShipmentCancelledV1:
		return decode[event.ShipmentCancelled](data)
	case event.PaymentReportedV1:
		return decode[event.PaymentReported](data)
	default:
		return nil, os.ErrNotExist
	}
}

func decode[T payload](data []byte) (payload, error) {
	var e T
	err := json.Unmarshal(data, &e)
	return e, err
}

func TestEveryGoldenPayloadStaysReadable(t *testing.T) {
	for eventType, golden := range eventtest.Goldens(t) {
		e, err := read(eventType, golden)
		if err != nil {
			t.Errorf("read(%s): %v", eventType, err)
			continue
		}
		again, err := json.MarshalIndent(e, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(bytes.TrimSpace(golden)), string(again)); diff != "" {
			t.Errorf("%s written again differs from its golden payload (-golden +got):\n%s", eventType, diff)
		}
		if e.Type() != eventType {
			t.Errorf("%T.Type() = %q, want %q", e, e.Type(), eventType)
		}
		if e.Key() != "u-1" {
			t.Errorf("%T.Key() = %q, want the user's id", e, e.Key())
		}
	}
}

func TestAReaderIgnoresFieldsItDoesNotKnow(t *testing.T) {
	for eventType, golden := range eventtest.Goldens(t) {
		newer := bytes.Replace(golden, []byte("{"), []byte(`{"added_later": {"by": "a newer writer"},`), 1)
		if _, err := read(eventType, newer); err != nil {
			t.Errorf("read(%s with an unknown field): %v", eventType, err)
		}
	}
}

func TestEveryGoldenPayloadFitsItsSchema(t *testing.T) {
	for eventType, golden := range eventtest.Goldens(t) {
		compiler := jsonschema.NewCompiler()
		compiler.AssertFormat()
		schema, err := compiler.Compile("schema/" + eventType + ".json")
		if err != nil {
			t.Errorf("compile the schema of %s: %v", eventType, err)
			continue
		}
		value, err := jsonschema.UnmarshalJSON(bytes.NewReader(golden))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(value); err != nil {
			t.Errorf("golden payload of %s: %v", eventType, err)
		}
		delete(value.(map[string]any), "user_id")
		if err := schema.Validate(value); err == nil {
			t.Errorf("the schema of %s accepts a payload without user_id", eventType)
		}
	}
}

func TestEveryTopicIsListed(t *testing.T) {
	listed := make(map[string]bool)
	for _, topic := range event.Topics() {
		listed[topic] = true
	}
	for eventType, golden := range eventtest.Goldens(t) {
		e, err := read(eventType, golden)
		if err != nil {
			t.Fatal(err)
		}
		if !listed[e.Topic()] {
			t.Errorf("Topics() lacks %q, the topic of %s", e.Topic(), eventType)
		}
	}
	for _, group := range event.Groups() {
		if !listed[event.DeadLetters(group)] {
			t.Errorf("Topics() lacks %q", event.DeadLetters(group))
		}
	}
}
