package main

import (
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// newSink returns a broker that acknowledges what is produced to it, after a delay, and keeps none of it: with it a relay does
// all that it does for Kafka, and waits for nothing else.
func newSink(delay time.Duration) (*kfake.Cluster, error) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, topic))
	if err != nil {
		return nil, fmt.Errorf("start the sink: %w", err)
	}
	var offset int64
	cluster.ControlKey(int16(kmsg.Produce), func(request kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if delay > 0 {
			<-time.After(delay)
		}
		offset++
		return acknowledged(request.(*kmsg.ProduceRequest), offset), nil, true
	})
	return cluster, nil
}

func acknowledged(request *kmsg.ProduceRequest, offset int64) *kmsg.ProduceResponse {
	response := request.ResponseKind().(*kmsg.ProduceResponse)
	for _, t := range request.Topics {
		answer := kmsg.NewProduceResponseTopic()
		answer.Topic, answer.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			partition := kmsg.NewProduceResponseTopicPartition()
			partition.Partition, partition.BaseOffset = p.Partition, offset
			answer.Partitions = append(answer.Partitions, partition)
		}
		response.Topics = append(response.Topics, answer)
	}
	return response
}
