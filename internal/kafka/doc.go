// Package kafka holds what the services and the command line share about Kafka: how clients connect, which topics there
// are and how they are made, and where consumer groups stand.
//
// Topics are created by [EnsureTopics], never by using them, and keep their partition count for ever: with another count
// a user's key would move to another partition, and the order of the user's messages would be lost. Both EnsureTopics and
// [Await], with which every service that reads or writes topics starts, refuse a topic whose count has changed.
package kafka
