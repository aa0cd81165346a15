# `make run` and `make test` are all a newcomer needs; each installs what it misses and says so.

# A target directory that several checkouts share is used when there is one.
SHARED_TARGET := $(HOME)/.cache/llm-observatory/target
export CARGO_TARGET_DIR ?= $(if $(wildcard $(SHARED_TARGET)),$(SHARED_TARGET),$(CURDIR)/target)

.PHONY: run build test check unit clients ui-test browser ui ui-verify bench micro torture measured clean-venv deps-ui deps-clients deps-browser

run: build
	@"$(CARGO_TARGET_DIR)/release/observatory" serve --demo

build:
	@scripts/deps.sh build
	cargo build --release

# Everything that must hold before a change lands.
test: check unit ui-test ui-verify clients browser
	@echo "all tests passed"

# Formatting, lints, crate edges, licences of what we link.
check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	cargo run --quiet -p xtask -- tidy

# One set of flags everywhere: other flags would choose other features and build everything twice.
BUILD_ALL := cargo build --workspace --all-targets

unit:
	$(BUILD_ALL)
	cargo test --workspace

VENV := $(CARGO_TARGET_DIR)/venv
WEB := crates/obs-ui/web

deps-clients:
	@scripts/deps.sh python "$(VENV)"
	@scripts/deps.sh node tests/clients/node
	@scripts/deps.sh prometheus

deps-ui:
	@scripts/deps.sh node "$(WEB)"

deps-browser: deps-ui
	@scripts/deps.sh chromium

# Real SDKs from PyPI against the built binary.
clients: deps-clients
	$(BUILD_ALL)
	OBSERVATORY_BIN="$(CARGO_TARGET_DIR)/debug/observatory" "$(VENV)/bin/python" -m pytest -q -p no:cacheprovider tests/clients

ui-test: deps-ui
	cd $(WEB) && npm run --silent check && npm run --silent test

# A browser walks the page of the real binary.
browser: deps-browser
	$(BUILD_ALL)
	cd $(WEB) && OBSERVATORY_BIN="$(CARGO_TARGET_DIR)/debug/observatory" LOG_LEVEL=warn node e2e/run.mjs

# Rebuilds the committed page.
ui: deps-ui
	cd $(WEB) && npm run --silent build

# The committed page is what the sources give.
ui-verify: deps-ui
	@out=$$(mktemp -d) && cd $(WEB) && UI_OUT=$$out npm run --silent build -- --logLevel warn && diff -r $$out ../dist && rm -rf $$out && echo "dist/ matches its sources"

# The binary that `make run` starts, and the harness around it.
measured:
	@scripts/deps.sh build
	cargo build --release -p observatory -p obs-torture

MEASURED := $(CARGO_TARGET_DIR)/release
# A generator of load, if there is another than our own.
LOADGEN ?=

# The table of what a million items cost; under ten minutes.
bench: measured
	$(MEASURED)/obs-torture bench --bin $(MEASURED)/observatory $(if $(LOADGEN),--loadgen $(LOADGEN))

# Benchmarks of single functions.
micro:
	cargo bench --workspace

# Faults, at length: about half an hour. Mounts, control groups and strace need root.
torture: measured
	$(MEASURED)/obs-torture sim
	$(MEASURED)/obs-torture flip
	$(MEASURED)/obs-torture tail
	$(MEASURED)/obs-torture strace --bin $(MEASURED)/observatory
	$(MEASURED)/obs-torture state --bin $(MEASURED)/observatory
	$(MEASURED)/obs-torture faults --bin $(MEASURED)/observatory
	$(MEASURED)/obs-torture full --bin $(MEASURED)/observatory
	$(MEASURED)/obs-torture replay --bin $(MEASURED)/observatory
	$(MEASURED)/obs-torture memory --bin $(MEASURED)/observatory
	$(MEASURED)/obs-torture overload --bin $(MEASURED)/observatory
	$(MEASURED)/obs-torture alerts --bin $(MEASURED)/observatory
	$(MEASURED)/obs-torture power --bin $(MEASURED)/observatory
	$(MEASURED)/obs-torture kill --bin $(MEASURED)/observatory
