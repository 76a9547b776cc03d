package dev

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/orderflow-dev/orderflow/internal/await"
	"github.com/orderflow-dev/orderflow/internal/kafka"
	"github.com/orderflow-dev/orderflow/internal/localpg"
	"github.com/orderflow-dev/orderflow/internal/postgres"
	"github.com/orderflow-dev/orderflow/internal/ratelimit"
)

// database is the one that the private Postgres keeps everything in.
const database = "orderflow"

// startPostgres starts the private Postgres, or connects to the user's, and returns the owner's URL.
func (s *system) startPostgres(ctx context.Context) (string, error) {
	began := time.Now()
	if s.opts.PostgresURL != "" {
		u, err := url.Parse(s.opts.PostgresURL)
		if err != nil {
			return "", errors.New("the Postgres URL must look like postgres://user:password@host:5432/database")
		}
		pool, err := postgres.Open(ctx, s.opts.PostgresURL, postgres.Options{MaxConns: 1})
		if err != nil {
			return "", err
		}
		pool.Close()
		s.report.part("postgres", "yours, "+u.Host, "", time.Since(began))
		return s.opts.PostgresURL, nil
	}
	port := cmp.Or(s.opts.Ports.Postgres, defaultPorts.Postgres)
	server, err := localpg.Start(ctx, localpg.Options{
		DataDir: filepath.Join(s.opts.DataDir, "postgres"), Port: port, AnyPort: s.opts.Ports.Postgres == 0, Log: s.log,
		Progress:   func(what string) { s.report.progress("postgres", what) },
		NoFsync:    s.opts.Ephemeral, // what is thrown away need not survive a power cut
		Parameters: map[string]string{"max_connections": "200"},
	})
	if err != nil {
		return "", err
	}
	s.add("postgres", layerServer, server.Stop)
	go func() {
		<-server.Exited()
		s.failed <- fmt.Errorf("postgres ended by itself; its log is %s", filepath.Join(s.opts.DataDir, "postgres", "postgres.log"))
	}()
	if err := createDatabase(ctx, server.URL("postgres")); err != nil {
		return "", err
	}
	note := ""
	if server.Port() != port {
		note = fmt.Sprintf("port %d is taken", port)
	}
	s.report.part("postgres", fmt.Sprintf("PostgreSQL %d on %s", server.Version(), loopback(server.Port())), note, time.Since(began))
	return server.URL(database), nil
}

func createDatabase(ctx context.Context, serverURL string) error {
	conn, err := pgx.Connect(ctx, serverURL)
	if err != nil {
		return fmt.Errorf("connect to postgres: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var exists bool
	if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, database).Scan(&exists); err != nil {
		return fmt.Errorf("look for database %s: %w", database, err)
	}
	if exists {
		return nil
	}
	if _, err := conn.Exec(ctx, `CREATE DATABASE `+database); err != nil {
		return fmt.Errorf("create database %s: %w", database, err)
	}
	return nil
}

// startKafka starts the embedded broker, or uses the user's, with the topics, and returns its addresses.
func (s *system) startKafka(ctx context.Context) ([]string, error) {
	began := time.Now()
	if brokers := s.opts.Kafka; len(brokers) > 0 {
		if err := kafka.EnsureTopics(ctx, brokers, kafka.TopicOptions{Wait: await.New(s.log, 15*time.Second)}); err != nil {
			return nil, err
		}
		s.report.part("kafka", "yours, "+strings.Join(brokers, ","), "", time.Since(began))
		return brokers, nil
	}
	ln, note, err := listen(ctx, cmp.Or(s.opts.Ports.Kafka, defaultPorts.Kafka), s.opts.Ports.Kafka != 0)
	if err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	b, err := startBroker(ctx, filepath.Join(s.opts.DataDir, "kafka"), s.refillMarker(), ln, s.log)
	if err != nil {
		return nil, err
	}
	retention, endRetention := context.WithCancel(context.WithoutCancel(ctx))
	go b.run(retention)
	s.add("kafka", layerServer, func(context.Context) error {
		endRetention()
		b.cluster.Close()
		return nil
	})
	if err := kafka.EnsureTopics(ctx, []string{b.addr}, kafka.TopicOptions{Configs: topicConfigs()}); err != nil {
		return nil, err
	}
	s.report.part("kafka", "embedded broker on "+b.addr, join(note, b.note), time.Since(began))
	return []string{b.addr}, nil
}

// startRedis starts a Redis in this process, or uses the user's, and returns its URL.
func (s *system) startRedis(ctx context.Context) (string, error) {
	began := time.Now()
	if s.opts.Redis != "" {
		opts, err := ratelimit.ParseURL(s.opts.Redis)
		if err != nil {
			return "", err
		}
		client := redis.NewClient(opts)
		defer client.Close()
		if err := client.Ping(ctx).Err(); err != nil {
			return "", fmt.Errorf("connect to Redis at %s: %w", opts.Addr, err)
		}
		s.report.part("redis", "yours, "+opts.Addr, "", time.Since(began))
		return s.opts.Redis, nil
	}
	port, note := cmp.Or(s.opts.Ports.Redis, defaultPorts.Redis), ""
	server := miniredis.NewMiniRedis()
	server.ClockTTL(true) // without it nothing ever expires
	err := server.StartAddr(loopback(port))
	if errors.Is(err, syscall.EADDRINUSE) && s.opts.Ports.Redis == 0 {
		note = fmt.Sprintf("port %d is taken", port)
		err = server.StartAddr(loopback(0))
	}
	if err != nil {
		return "", fmt.Errorf("start redis: %w", err)
	}
	s.add("redis", layerServer, func(context.Context) error { server.Close(); return nil })
	s.report.part("redis", "in this process on "+server.Addr(), note, time.Since(began))
	return "redis://" + server.Addr() + "/0", nil
}

// refillMarker is the file that says that the embedded broker lacks records of earlier runs (see startBroker).
func (s *system) refillMarker() string { return filepath.Join(s.opts.DataDir, "kafka.refill") }
