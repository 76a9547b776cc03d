package localkafka

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// probe reports why clients cannot work with the brokers at addrs yet.
func probe(ctx context.Context, client *kgo.Client, addrs []string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for i, addr := range addrs {
		// Node i+1 answers for itself: the others may have heard of it before it serves.
		request := kmsg.NewPtrMetadataRequest()
		request.Topics = []kmsg.MetadataRequestTopic{} // none
		answer, err := client.SeedBrokers()[i].Request(ctx, request)
		if err != nil {
			return fmt.Errorf("ask broker %s: %w", addr, err)
		}
		if known := len(answer.(*kmsg.MetadataResponse).Brokers); known != len(addrs) {
			return fmt.Errorf("broker %s knows %d of %d brokers", addr, known, len(addrs))
		}
	}
	const group = "orderflow-probe"
	if err := kadm.NewClient(client).FindGroupCoordinators(ctx, group)[group].Err; err != nil {
		return fmt.Errorf("find a group coordinator: %w", err)
	}
	return nil
}
