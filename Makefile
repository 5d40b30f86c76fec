# The five verbs. `make setup` is called by the others; it is quick when there is nothing to do.
# PYTHON=/path/to/python3 chooses the Python, ARGS="..." goes to pytest.

export PYTHON
BIN := .venv/bin
# Tests run on several workers, each with servers of its own: TEST_WORKERS=n says how many, ARGS="-n 0" runs
# them one after another.
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
# What the compiled parts take the place of.
PATH_TESTS := tests/contract $(addprefix tests/unit/,connection market_data pipeline providers storage wire) \
	tests/unit/test_data_broadcast.py tests/unit/test_provider_manager.py tests/unit/test_benchmarks.py

.PHONY: help setup demo run test test-interpreted test-faults test-chaos test-outage check bench bench-soak bench-guard

help:
	@echo "make setup   install everything into .venv"
	@echo "make demo    simulated providers, real servers, no keys"
	@echo "make run     live providers, settings from .env"
	@echo "make test    everything quick, real PostgreSQL and Redis"
	@echo "make test-interpreted   the tests of the path of a tick without its compiled parts"
	@echo "make test-faults   the whole fault matrix with its slow rows, and its table"
	@echo "make test-chaos    faults at random on a running stack, SEED=n repeats a run, MINUTES=10"
	@echo "make test-outage   Redis away for MINUTES=10 at RATE=5000 ticks a second"
	@echo "make check   formatter, linter, types, import rules"
	@echo "make bench   benchmarks beside the machine's ceilings; ARGS=\"--quick\" or ARGS=\"latency memory\""
	@echo "make bench-soak    half an hour at one rate, and whether anything drifts; ARGS=\"--minutes 5 --rate 5000\""
	@echo "make bench-guard   instructions of the path of one tick against the recorded ones"

setup:
	@sh scripts/setup.sh

demo: setup
	@exec $(BIN)/python main.py run --demo

run: setup
	@$(BIN)/python data_migration/setup_providers.py
	@$(BIN)/python data_migration/populate_instrument_mappings.py --if-empty
	@exec $(BIN)/python main.py run

test: setup
	@REQUIRE_SERVERS=1 exec $(PYTEST) --faults=quick $(ARGS)

test-interpreted: setup
	@MARKETD_COMPILED=0 REQUIRE_SERVERS=1 exec $(PYTEST) $(PATH_TESTS) $(ARGS)

test-faults: setup
	@REQUIRE_SERVERS=1 exec $(PYTEST) tests/faults tests/chaos --fault-table $(ARGS)

test-chaos: setup
	@TIMEOUT_FACTOR=$${TIMEOUT_FACTOR:-2} exec $(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) --minutes $(or $(MINUTES),10) $(ARGS)

test-outage: setup
	@TIMEOUT_FACTOR=$${TIMEOUT_FACTOR:-2} exec $(BIN)/python -m tests.chaos --outage --minutes $(or $(MINUTES),10) --rate $(or $(RATE),5000) $(ARGS)

check: setup
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy
	@$(BIN)/python -c "import sys; from importlinter.cli import lint_imports_command as lint; sys.exit(lint())"

bench: setup
	@exec $(BIN)/python -m benchmarks $(ARGS)

bench-soak: setup
	@exec $(BIN)/python -m benchmarks.soak $(ARGS)

bench-guard: setup
	@exec $(BIN)/python -m benchmarks.guard $(ARGS)
