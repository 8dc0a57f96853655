# Two commands on a fresh machine with Python, git and make: `make demo`, `make test`.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Plain `torch` would bring several GB of CUDA packages on Linux; this release has a CPU build.
TORCH ?= torch==2.13.0

# MindSpore wants numpy < 2, and MindFormers an older transformers: an environment of its own, of 3 GB.
MINDSPORE_VENV ?= $(VENV)-mindspore
MINDSPORE_BIN := $(MINDSPORE_VENV)/bin
MINDSPORE_TESTS := tests/engines tests/contracts/test_engines.py tests/weights tests/e2e/test_mindspore.py

# most tests wait for servers: two at once take little more than half the time
SIDE_BY_SIDE := -n 2 --dist loadfile

CORE := $(VENV)/.core
TEST := $(VENV)/.test
ORACLE := $(VENV)/.oracle
DEV := $(VENV)/.dev
MINDSPORE := $(MINDSPORE_VENV)/.test
MINDSPORE_ORACLE := $(MINDSPORE_VENV)/.oracle

.PHONY: help demo test test-all venv-all check format clean

help:
	@echo "make demo      set up, then the main job on the embedded model: load, latencies, accuracy"
	@echo "make test      set up, then the tests, those of MindSpore in an environment of their own (3 GB)"
	@echo "make test-all  the tests against torch and transformers, and with other people's clients and in a browser (if there is one), as well"
	@echo "make venv-all  MindSpore, MindFormers, torch and transformers in one environment, and what they are"
	@echo "make check     ruff and mypy"
	@echo "make format    let ruff format the code"

$(CORE): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(TEST): $(CORE)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

$(ORACLE): $(TEST)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[test,oracle,clients]'
	@touch $@

$(DEV): $(TEST)
	$(BIN)/python -m pip install --quiet --editable '.[test,dev]'
	@touch $@

$(MINDSPORE): pyproject.toml
	$(PYTHON) -m venv $(MINDSPORE_VENV)
	$(MINDSPORE_BIN)/python -m pip install --quiet --upgrade pip
	$(MINDSPORE_BIN)/python -m pip install --quiet --editable '.[test,mindspore]'
	@touch $@

$(MINDSPORE_ORACLE): $(MINDSPORE)
	$(MINDSPORE_BIN)/python -m pip install --quiet $(TORCH)
	$(MINDSPORE_BIN)/python -m pip install --quiet --editable '.[test,mindspore,oracle]'
	@touch $@

demo: $(CORE)
	@echo
	@echo "== 1. load: 60 requests, Poisson arrivals at 6 per second, against the bundled stack"
	@mkdir -p results
	$(BIN)/llmbench perf -X 6 -T 10 --results results; echo $$? > results/.demo  # a busy machine makes it INVALID
	@echo
	@echo "== 2. accuracy: base logits one request at a time, then the same requests 16 at once"
	rm -rf results/demo-base results/demo-base.manifest.jsonl
	$(BIN)/llmbench acc dump -o results/demo-base -n 40 --every 10
	$(BIN)/llmbench acc --base results/demo-base -n 40 --concurrency 16
	@echo
	@echo "llmbench is in $(BIN); this puts it into the PATH: source $(BIN)/activate"
	@exit $$(cat results/.demo)

test: $(TEST) $(MINDSPORE)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not oracle and not clients and not slow and not browser and not alone"
	$(BIN)/python -m pytest -m "alone and not slow"
	$(MINDSPORE_BIN)/python -m pytest $(MINDSPORE_TESTS) -m "not oracle and not slow"

test-all: $(ORACLE) $(MINDSPORE_ORACLE)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not alone"
	$(BIN)/python -m pytest -m "alone and not slow"
	$(MINDSPORE_BIN)/python -m pytest $(MINDSPORE_TESTS) -m "not slow"

# In one process family, each engine can be compared with any other.
venv-all: $(MINDSPORE_ORACLE)
	@$(MINDSPORE_BIN)/python -m pip list 2>/dev/null | grep -E "^(mindspore|mindformers|torch|transformers|numpy) "
	@echo "in $(MINDSPORE_VENV)"

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(MINDSPORE_VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
