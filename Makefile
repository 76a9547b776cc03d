BIN := bin
GO  ?= go

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
LDFLAGS  := -X main.version=$(VERSION) -X main.revision=$(REVISION)

# The compose plugin where Docker has it; elsewhere it is built from its module.
COMPOSE ?= $(if $(shell docker compose version 2>/dev/null),docker compose,$(BIN)/docker-compose)

.PHONY: help dev kafka build test test-history test-order test-payments test-alerts test-servers test-kafka test-compose lint bench bench-outbox bench-inbox bench-saga up down logs fmt clean
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

dev: build ## Run the whole system in one process: no Docker, no Java; Ctrl-C stops it
	@$(BIN)/orderflow dev $(ARGS)

BROKERS ?= 1

kafka: $(BIN)/kafka ## Run Apache Kafka, BROKERS=3 for a cluster; needs Java 17 and Maven, no Docker; Ctrl-C stops it
	@$(BIN)/kafka -brokers $(BROKERS) $(ARGS)

build: ## Build bin/orderflow
	@$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/orderflow ./cmd/orderflow

# Without the setting each test binary sleeps for a second before it ends.
test: ## Run every test, race detector on; starts the servers it needs
	GORACE=atexit_sleep_ms=0 CGO_ENABLED=1 $(GO) test $(TESTFLAGS) -race -shuffle=on -timeout 10m ./...

SEEDS ?= 200

# From its own folder go test prints what the runs count. SEED=n runs that one again.
test-history: ## Prove the outbox in SEEDS random runs: no loss, no disorder; SEED=n repeats one
	GORACE=atexit_sleep_ms=0 CGO_ENABLED=1 $(GO) -C outbox test -race -timeout 10m -run TestHistoryHas \
		-outbox.seeds=$(SEEDS) $(if $(SEED),-outbox.seed=$(SEED))

# Without the race detector, with which make test runs a few of the same rounds: three times as many fit into the time.
test-order: SEEDS = 100
test-order: ## Prove the inbox in SEEDS random rounds: each effect once and in order; SEED=n repeats one
	$(GO) -C inbox test -timeout 15m -run TestOrderHolds \
		-inbox.seeds=$(SEEDS) $(if $(SEED),-inbox.seed=$(SEED))

test-alerts: ## Check the alert rules and what they fire at; needs promtool, of Debian's package prometheus
	promtool check rules deploy/alerts/inbox.yml deploy/alerts/saga.yml
	promtool test rules deploy/alerts/inbox_test.yml deploy/alerts/saga_test.yml

test-servers: ## Run the outbox with a pooler, replicas and dumps, the inbox through a long outage; needs Debian's packages postgresql and pgbouncer
	GORACE=atexit_sleep_ms=0 CGO_ENABLED=1 $(GO) test $(TESTFLAGS) -race -shuffle=on -count=1 -tags servers -timeout 10m ./outbox
	GORACE=atexit_sleep_ms=0 CGO_ENABLED=1 $(GO) test $(TESTFLAGS) -race -count=1 -tags servers -timeout 10m -run DownForLong ./inbox

test-payments: ## Crash the order saga at every point of every way that a payment can go, as make test does for a few
	GORACE=atexit_sleep_ms=0 CGO_ENABLED=1 $(GO) -C services/order test -race -timeout 15m -run TestEveryCrash -order.whole

test-kafka: $(BIN)/kafka ## Run the suites that use Kafka on Apache Kafka; ARGS="-run NAME ./inbox" for some of it
	@$(BIN)/kafka test $(ARGS)

lint: $(BIN)/golangci-lint ## Run the linters
	$(BIN)/golangci-lint run ./...
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt: run 'make fmt'"; gofmt -l $$(git ls-files '*.go'); exit 1; }

bench: build ## Measure against pgbench in the same run and print the ratios
	$(GO) run ./bench $(ARGS)

bench-outbox: ## Measure package outbox beside Watermill and Debezium; the latter needs Java 17 and Maven; ARGS="-legs drain"
	$(GO) run ./bench/outbox $(ARGS)

bench-inbox: ## Measure package inbox beside the consumers that are usually written; ARGS="-legs batch,poison"
	$(GO) run ./bench/inbox $(ARGS)

bench-saga: ## Measure package saga beside pgbench and one instance per transaction; ARGS="-legs local,order"
	$(GO) run ./bench/saga $(ARGS)

up: compose ## Run the system in containers: needs a Docker engine
	@deploy/compose/up $(COMPOSE)

down: compose ## Stop the containers; ARGS=-v forgets their data
	@$(COMPOSE) --profile '*' down --remove-orphans $(ARGS)

logs: compose ## Follow what the containers say
	@$(COMPOSE) logs --follow --tail 50 $(ARGS)

# IMAGES=standin builds images where no registry can be reached; official pulls. By default: what can be done.
test-compose: ## Use, break and check the system in containers
	@COMPOSE='$(COMPOSE)' test/compose/run $(IMAGES)

.PHONY: compose prepare-compose
prepare-compose: # what test-compose needs, without the tests
	@COMPOSE='$(COMPOSE)' test/compose/run prepare

compose: $(filter $(BIN)/%,$(COMPOSE)) # what $(COMPOSE) runs

fmt: $(BIN)/golangci-lint ## Format the code
	$(BIN)/golangci-lint fmt

.PHONY: $(BIN)/kafka
$(BIN)/kafka:
	@$(GO) build -o $@ ./test/kafka

clean: ## Remove what was built (not the data of make dev)
	rm -rf $(BIN)

# A module of its own keeps the linter's dependencies out of ours and its version pinned.
$(BIN)/golangci-lint: tools/go.mod
	cd tools && $(GO) build -o ../$(BIN)/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@touch $@

$(BIN)/docker-compose: tools/compose/go.mod
	cd tools/compose && $(GO) build -o ../../$@ github.com/docker/compose/v2/cmd
	@touch $@
