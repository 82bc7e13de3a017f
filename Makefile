# Two commands do all the set-up: `make demo` and `make test`.

export RAYON_NUM_THREADS ?= 1
export ICTFLOW_MODELS ?= $(HOME)/.cache/ictflow
export ICTFLOW_PYTHON ?= $(HOME)/.cache/ictflow/python/bin/python
CARGO ?= cargo

.PHONY: help demo demo-again test build models tools toolchain lint unit suite oracle doc

help:
	@echo "make demo        MovieLens-100K as streams through the whole pipeline (about 5 minutes after the build)"
	@echo "make demo-again  a new job over the demo's logs: no call, every vector equal byte for byte"
	@echo "make test        lints, unit tests, the end-to-end suite on a real Kafka, the oracle's own tests"
	@echo "make build       the binary, target/release/ictflow"
	@echo "make doc         the code's documentation"

demo: build models
	target/release/ictflow demo

demo-again: build
	target/release/ictflow demo --again

build: toolchain
	$(CARGO) build --release --locked -p ictflow-dataflows

# The LLM, the encoder and the sample data, as packages by name, checked by SHA-256.
models:
	@deploy/models.sh

# What only the tests need: a JDK and Maven with the Kafka jars, kcat, the oracle's Python packages.
tools:
	@deploy/test-tools.sh
	@deploy/kafka-jars.sh >/dev/null

toolchain:
	@deploy/toolchain.sh

test: toolchain models tools lint unit suite oracle
	@echo "all tests passed"

lint:
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	@for script in deploy/*.sh; do sh -n $$script || exit 1; done

unit:
	$(CARGO) test --release --locked --workspace --exclude ictflow-tests

suite:
	$(CARGO) test --release --locked -p ictflow-tests

oracle:
	$(ICTFLOW_PYTHON) -m pytest -q tests/oracle

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --workspace --no-deps
