# Each of the five goals works as the first command on a machine with Python 3.11 (with venv and pip), a Rust
# toolchain and gcc: whatever is missing is made on the way, and nothing is made twice.
#
#   make demo    a small four-vCPU guest with a stale INT3: recorded, stopped at, led back to its cause
#   make test    the tests of the core and of the package
#   make check   formatters, linters, type checkers
#   make soak    the robustness tests at length: hostile guests and, of kernels named in ARGS, boots
#   make bench   time boots, small programs and start-up (ARGS="--kernel … --initrd …" for a real kernel)

PYTHON3 ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(BIN)/python
# One profile for everything that is run: the tests share the artefacts of the installed module.
CARGO_FLAGS := --release --locked
ARGS ?=
# Of `make soak`: one of how many encodings, how many damaged traces, and what both are drawn from.
SWEEP ?= 29
INPUTS ?= 1000000
SEED ?= 1
MIRI_TESTS ?= memory::ram memory::tlb memory::pages saved:: host_time:: cpu::msr cpu::segment cpu::paging runtime::writelog \
	runtime::storelog runtime::inputs runtime::oracle trace::varint trace::codec::columns translate::mode translate::site

MODULE_SOURCES := Cargo.toml Cargo.lock $(shell find native/rr86-core native/rr86-py -name '*.rs' -o -name Cargo.toml)

# Two that install at the same time would take each other's files away, so they take turns by a lock on this file.
LOCKED := flock Makefile

.PHONY: demo test check soak bench miri install install-dev test-core test-python \
	check-format check-python check-rust check-stubs clean
.DELETE_ON_ERROR:

demo: install
	$(PYTHON) -m rr86.guests

test: test-core test-python

# Without the bindings: they hold no logic, and would need a Python to link with.
test-core:
	cargo test $(CARGO_FLAGS) --workspace --exclude rr86-py

test-python: install-dev
	$(PYTHON) -m pytest $(ARGS)

check: check-format check-python check-stubs check-rust

check-format: install-dev
	$(BIN)/ruff format --check .
	cargo fmt --all --check

check-python: install-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

check-stubs: install-dev
	$(PYTHON) -m mypy.stubtest rr86._native

check-rust: install
	PYO3_PYTHON=$(abspath $(PYTHON)) cargo clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings

soak: install-dev
	$(PYTHON) -m tests.soak $(ARGS)
	cargo run $(CARGO_FLAGS) -p rr86-differential -- --sweep $(SWEEP) --seed $(SEED)
	cargo run $(CARGO_FLAGS) -p rr86-fuzz -- --inputs $(INPUTS) --seed $(SEED) traces/*.rr86

# What of the core runs without generated code, under Miri (docs/testing.md). Needs a nightly toolchain with Miri.
miri:
	MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-permissive-provenance" cargo +nightly miri test --locked \
		-p rr86-core --lib -- $(MIRI_TESTS)

bench: install
	$(PYTHON) -m bench $(ARGS)

install: $(VENV)/module
install-dev: install $(VENV)/tools

$(VENV)/made: Makefile
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "rr86 needs Python 3.11 or newer; name one with PYTHON3=…" >&2; exit 1; }
	$(LOCKED) $(PYTHON3) -m venv $(VENV)
	$(LOCKED) $(BIN)/pip install --quiet --disable-pip-version-check 'maturin>=1.9,<2'
	@touch $@

# Without build isolation, so that maturin and cargo only do what has changed.
$(VENV)/module: $(VENV)/made pyproject.toml $(MODULE_SOURCES)
	$(LOCKED) $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --editable .
	@touch $@

$(VENV)/tools: $(VENV)/made pyproject.toml | $(VENV)/module
	$(LOCKED) $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build target rr86/_native*.so
