# Every target does its own set-up; nothing is checked elsewhere that a target here does not do.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
IMAGE   ?= csi-s3:$(VERSION)
export GOFLAGS := $(filter-out -buildvcs=false,$(GOFLAGS)) -buildvcs=false

# Modules beside the driver's: what is heavy lives there, so that it never enters the driver's go.mod.
# test/e2e needs a cluster and has a target of its own; test/e2e/kube is Kubernetes itself and only ever built.
NESTED := $(filter-out test/e2e%,$(shell git ls-files '*/go.mod' 2>/dev/null | xargs -r -n1 dirname))

.PHONY: help build demo test conformance chaos sim replay e2e soak lint image image-all

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

build: ## the static binary bin/csi-s3
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/...

demo: ## the main job on this machine: an S3 server, a volume, a file as an object; needs root and /dev/fuse
	@$(GO) -C cmd/csi-s3-demo build -o $(CURDIR)/bin/ .
	@bin/csi-s3-demo

conformance: ## csi-sanity, POSIX tests and the S3 suite on real servers and mounts; part of test
	cd test/conformance && $(GO) test -race -count=1 -timeout 20m ./...
	cd test/s3 && $(GO) test -race -timeout 20m ./...

chaos: ## the real process is killed, loses its power and its network, again and again; part of test; needs root
	cd test/chaos && $(GO) test -race -count=1 -v -timeout 40m .

sim: ## 10,000 lives of a volume in virtual time, with faults and crashes from a seed; part of test
	cd test/sim && $(GO) test -count=1 -v -timeout 30m .

replay: ## one of these lives again, exactly, and all that happens in it: make replay SEED=123
	cd test/sim && CSI_S3_SIM_LIFE=$${SEED:?which seed} $(GO) test -count=1 -v -run 'TestLives$$' .

e2e: ## chart and driver on a real single-node Kubernetes that it builds (10 minutes the first time) and starts; needs root
	@test/e2e/packages.sh
	cd test/e2e && $(GO) test -count=1 -v -timeout 45m .

soak: ## the long figures: 3 GiB files, 20,000 objects, the whole Go tree, 1,000 kills, 200 power cuts, 100,000 simulated lives, every call failing; hours, 10 GiB of disk
	cd test/conformance && CSI_S3_SOAK=1 $(GO) test -count=1 -v -timeout 2h -run 'Tree|LargeFile|Listing|Kill|Fsx|Partial|Move|SmallCache|Spill' .
	cd test/chaos && CSI_S3_SOAK=1 $(GO) test -count=1 -v -timeout 4h .
	cd test/sim && CSI_S3_SOAK=1 $(GO) test -count=1 -v -timeout 4h .
	cd pkg/volume && CSI_S3_SOAK=1 $(GO) test -count=1 -v -timeout 4h -run 'NthCall|ACE' .

# go test prints one line per package; the closing lines are what a reader of a CI log sees. Some suites build
# what they test, which go test's cache does not see.
test: ## all tests of all modules, with the race detector; as root with /dev/fuse also the real mounts
	@log=$$(mktemp); trap 'rm -f "$$log"' EXIT; status=0; \
	for dir in . $(NESTED); do \
	  packages=$$(cd "$$dir" && $(GO) list ./...); \
	  [ -n "$$packages" ] || continue; \
	  echo "== go test $$dir"; \
	  (cd "$$dir" && $(GO) test -race -timeout 40m $$(case "$$dir" in test/conformance|test/chaos|test/sim) echo -count=1;; esac) ./...) 2>&1 | tee -a "$$log" || status=$$?; \
	done; \
	echo "== result"; grep -E '^(ok|FAIL|---|panic:)' "$$log" | tail -n 60 || true; \
	exit $$status

lint: bin/golangci-lint ## gofmt, go vet and golangci-lint on all modules
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	if [ -n "$$unformatted" ]; then echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	@for dir in . $(NESTED) test/e2e; do \
	  echo "== lint $$dir"; \
	  (cd "$$dir"; packages=$$($(GO) list ./...); [ -n "$$packages" ] || exit 0; \
	   $(GO) vet ./... && $(CURDIR)/bin/golangci-lint run --config $(CURDIR)/.golangci.yml ./...); \
	done

bin/golangci-lint: test/lint/go.mod
	$(GO) -C test/lint build -o $(CURDIR)/$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

image: ## the container image $(IMAGE); needs docker
	docker build --build-arg VERSION=$(VERSION) -t $(IMAGE) .

image-all: ## the image $(IMAGE) for amd64 and arm64 as bin/image.tar, an OCI archive; needs docker buildx
	@mkdir -p bin
	docker buildx build --platform linux/amd64,linux/arm64 --build-arg VERSION=$(VERSION) -t $(IMAGE) -o type=oci,dest=bin/image.tar .
