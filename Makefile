# moorline: what a person types. `make help` lists it.

CARGO ?= cargo
MOORLINE := target/release/moorline

.PHONY: help demo restart test sim lint bench fuzz clean deps cargo
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: build ## our host reads and writes our target over AF_XDP, beside kernel sockets (root)
	@mkdir -p target
	$(MOORLINE) perf --rig --demo --json target/demo.json

restart: build ## targets go in three ways and come back, beside a healthy controller under load (root; 6 minutes)
	@mkdir -p target
	$(MOORLINE) rig run tests/rig/scenarios/restart.toml --cycles 2 --json target/restart.json

bench: build ## what our code costs per read, then the demo with more rounds
	@mkdir -p target
	$(CARGO) run --release -p moorline-nvme --example own_cost
	$(MOORLINE) perf --rig --demo --rounds 11 --json target/bench.json

test: deps cargo ## all tests; with MOORLINE_REQUIRE_RIG=1 those that need root fail instead of skipping
	$(CARGO) test --workspace

SIM_RUNS ?= 2000

sim: deps cargo ## simulated worlds, each from a fresh seed: faults, then everything must be well (SIM_RUNS=2000)
	$(CARGO) run --release -p sim -- --runs $(SIM_RUNS)

lint: deps cargo ## formatting, and clippy without a warning
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

FUZZ_TARGETS := decoder ic pages target host frames config scenario
TIME ?= 60
# libFuzzer wants unstable flags of the compiler, no other compiler.
FUZZ := RUSTC_BOOTSTRAP=1 $(CARGO) fuzz

fuzz: deps cargo fuzz-deps ## each fuzz target for TIME seconds (60), or those in FUZZ_TARGETS
	@for target in $(FUZZ_TARGETS); do \
	  mkdir -p tests/fuzz/fresh/$$target; \
	  $(FUZZ) run --fuzz-dir tests/fuzz -s none --features libfuzzer $$target \
	    tests/fuzz/fresh/$$target tests/fuzz/corpus/$$target -- \
	    -max_total_time=$(TIME) -max_len=8192 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
	    || exit 1; \
	done

.PHONY: fuzz-deps
fuzz-deps:
	@$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install cargo-fuzz --locked

clean: ## remove what was built, and rigs that were left over
	@if [ -x $(MOORLINE) ]; then $(MOORLINE) rig sweep || true; fi
	$(CARGO) clean

.PHONY: build
build: deps cargo
	$(CARGO) build --release -p moorline

# Installs missing Debian packages, and only those; says what it does.
deps:
	@.ci/deps

cargo:
	@command -v $(CARGO) >/dev/null || { \
	  echo "cargo is missing. Debian's is too old; install Rust with rustup: https://rustup.rs"; \
	  exit 2; }
