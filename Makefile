# Two commands do all the set-up: `make demo` and `make test`.

# Small products lose more by threads waiting for each other than they gain.
export RAYON_NUM_THREADS ?= 1
export CANDLE_NUM_THREADS ?= 1
export ICTFLOW_MODELS ?= $(HOME)/.cache/ictflow
export ICTFLOW_PYTHON ?= $(HOME)/.cache/ictflow/python/bin/python
CARGO ?= cargo
BINARY = $(or $(CARGO_TARGET_DIR),target)/release/ictflow

.PHONY: help demo demo-again cots evaluate evaluate-quick test chaos bench weights build models tools toolchain lint unit suite oracle doc
# The prerequisites of a target run one after the other, also under -j: cargo is parallel by itself.
.NOTPARALLEL:

help:
	@echo "make demo        MovieLens-100K as streams through the whole pipeline (about 5 minutes after the build)"
	@echo "make demo-again  a new job over the demo's logs: no call, every vector equal byte for byte"
	@echo "make cots        CoT texts by the local LLM for training examples of MovieLens-100K, judged (COTS=n: the first n, 60)"
	@echo "make evaluate    what neighbours and the paper's vector are worth to six rankers on MovieLens-100K (hours; goes on after a kill)"
	@echo "make evaluate-quick  a small cut of it: 200 users, six arms, two rankers, CoTs by the local LLM (about 10 minutes after the build)"
	@echo "make test        lints, unit tests, the end-to-end suite on a real Kafka, the oracle's own tests"
	@echo "make chaos       the fault tests in their long form, seeds printed (SEED=n repeats one)"
	@echo "make bench       throughput, latency, memory, models and commits, with their spread (BENCH=\"--quick\": small sizes, a quarter of an hour or so)"
	@echo "make weights     trains the small rankers and the ICT weights of deploy/weights anew (build again to have them in the program)"
	@echo "make build       the binary, target/release/ictflow"
	@echo "make doc         the code's documentation"
	@echo "Parts: models, tools and toolchain set up; lint, unit, suite and oracle test."

demo: build models
	$(BINARY) demo

demo-again: build models
	$(BINARY) demo --again

# Texts that are there already aren't asked again: a larger COTS adds to them. ARGS takes more of the program's options,
# such as --label-free or --max-seconds 600.
COTS ?= 60
ML = --data $(ICTFLOW_MODELS)/data/ml-100k
cots: build models
	$(BINARY) cots $(ML) --generator local --count $(COTS) $(ARGS)

# The whole table: six rankers, all arms, 3 seeds, the protocols time and new-items; then the label delays for
# those arms that labels decide. Finished cells are read back, so a killed one goes on. CoTs are those of the log:
# COTS=n lets the local LLM write up to n of each kind first. EVALUATE takes more of the program's options, such as --jobs 2.
COT_LOG = $(ICTFLOW_MODELS)/cots/ml-100k.jsonl
TABLES = $(or $(CARGO_TARGET_DIR),target)/evaluate
SIX = deepfm,xdeepfm,autoint,dcn,dcnv2,din
DELAYED = strong,strong+rate,votes,attention,attention+votes

evaluate: build models
	for protocol in time new-items; do \
		for kind in '' --label-free; do \
			$(BINARY) cots $(ML) --protocol $$protocol --generator local --count $(COTS) --judge 0 $$kind || exit 1; \
		done; \
		$(BINARY) evaluate $(ML) --protocol $$protocol --backbone $(SIX) --arms all --cots $(COT_LOG) \
			--out $(TABLES)/$$protocol $(EVALUATE) || exit 1; \
	done
	$(BINARY) evaluate $(ML) --backbone $(SIX) --arms $(DELAYED) --label-delay 0,10m,1h,1d --out $(TABLES)/time $(EVALUATE) \
		--table delays

# A small honest cut for a look: 200 users, 60 CoTs, which are written now or read from the log. Small batches and few
# epochs, so that 36 trainings end in minutes: its figures stand beside each other, not beside those of the whole table.
evaluate-quick: build models
	$(BINARY) cots $(ML) --users 200 --generator local --count 60 --judge 0
	$(BINARY) evaluate $(ML) --users 200 --backbone deepfm,din --arms ids,strong,votes,attention,paper-llm,paper-shuffled \
		--cots $(COT_LOG) --batch 256 --epochs 5 --learning-rate 1e-3 --jobs 2 --out $(TABLES)-quick $(EVALUATE)

# Figures for the README: all of them on a quiet machine. BENCH takes the program's options.
bench: toolchain models
	$(CARGO) bench --profile release --locked -p ictflow-dataflows --bench whole -- --out $(abspath $(or $(CARGO_TARGET_DIR),target))/bench $(BENCH)

# Small enough to be in the repository and in the program, with the cards that say how they were made: the ranker with
# vector and votes and its ICT weights, and in strong/ the same ranker trained without either, which the demo measures
# beside it. WEIGHTS takes more options of `ictflow train` for both, such as WEIGHTS="--seed 2".
SMALL = --width 16 --user-rows 4096 --item-rows 4096 --creator-rows 16 --category-rows 64
weights: build models
	$(BINARY) train $(ML) $(SMALL) --arm attention+votes --out target/weights $(WEIGHTS)
	$(BINARY) train $(ML) $(SMALL) --arm strong --out target/weights/strong $(WEIGHTS)
	rm -rf deploy/weights && mkdir -p deploy/weights/strong
	cp target/weights/*.* deploy/weights && cp target/weights/strong/*.* deploy/weights/strong

build: toolchain
	$(CARGO) build --release --locked -p ictflow-dataflows

# The LLM, the encoder and the sample data, as packages by name, checked by SHA-256.
models: toolchain
	@deploy/models.sh

# What only the tests need: a JDK and Maven with the Kafka jars, kcat, the oracle's Python packages.
tools:
	@deploy/test-tools.sh
	@deploy/kafka-jars.sh >/dev/null
	@deploy/registry-app.sh >/dev/null

# What every build needs: compilers, Python, Rust. Checked each time, installed where missing.
toolchain:
	@deploy/toolchain.sh

PHASES = toolchain tools models lint unit suite oracle

test:
	@begun=$$(date +%s); times=''; \
	for phase in $(PHASES); do \
		echo "test: $$phase"; started=$$(date +%s); \
		$(MAKE) --no-print-directory $$phase || { echo "test: failed in $$phase"; exit 1; }; \
		times="$$times $$phase $$(($$(date +%s) - started)) s,"; \
	done; \
	echo "test: passed in $$(($$(date +%s) - begun)) s:$${times%,}"

# The fault tests of the suite and the simulation, with more rounds and seeds than `make test` has.
chaos: toolchain tools models
	ICTFLOW_CHAOS=1 $(if $(SEED),ICTFLOW_SEED=$(SEED)) $(CARGO) test --release --locked --workspace --test suite -- --nocapture chaos::

lint: toolchain
	@for script in deploy/*.sh; do sh -n $$script || exit 1; done
	@bash -n .ci/run
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --release --locked --workspace --test suite -- -D warnings

# Both of the whole workspace: of a part of it cargo would build dependencies anew, with that part's features.
unit:
	$(CARGO) test --release --locked --workspace

suite:
	$(CARGO) test --release --locked --workspace --test suite

oracle:
	$(ICTFLOW_PYTHON) -m pytest -q -p no:cacheprovider tests/oracle

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --workspace --no-deps
