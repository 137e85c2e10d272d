# Each target sets up .venv by itself, with pip alone. PYTHON names the interpreter to start from.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Tiny models are faster on one thread, most of all beside other work.
TINY := OPENBLAS_NUM_THREADS=1
SOURCES := orpo_mlx tests scripts

.PHONY: demo test test-fast test-long check fmt docs bench flake install clean

demo: .venv/.core  ## fetch a small chat model, train it on bundled pairs, show before and after
	$(BIN)/orpo-mlx demo $(ARGS)

install: .venv/.core  ## the command line in .venv/bin/orpo-mlx

test: .venv/.test check  ## what every change runs
	$(TINY) $(BIN)/python -m pytest -q -m "not long"

test-fast: .venv/.test  ## the unit tests alone
	$(TINY) $(BIN)/python -m pytest -q -m "not long and not parity"

test-long: .venv/.test  ## the demo whole, a wheel in a fresh environment, llama.cpp's tokenizer
	$(BIN)/python -m pytest -q -m long --durations=0

check: .venv/.test  ## lint, format, types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

fmt: .venv/.test  ## format, and mend what the linter can
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

docs: .venv/.core  ## docs/cli.md from the declared options
	$(BIN)/python scripts/build_cli_docs.py

bench: .venv/.core  ## this project's paths beside mlx-lm-lora, or PART='steps tokens checks start'
	$(BIN)/python scripts/$(if $(PART),bench_parts.py $(PART),benchmark.py) $(ARGS)

flake: .venv/.test  ## the touchy tests 20 times, half beside two busy loops, in random order
	OPENBLAS_NUM_THREADS=1 $(BIN)/python scripts/flake.py $(ARGS)

.venv/.core: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "orpo-mlx needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || { \
		$(PYTHON) -m venv --clear --without-pip .venv && \
		$(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(PIP) -e '.[cpu,gguf]'
	touch $@

.venv/.test: .venv/.core
	$(PIP) -e '.[cpu,gguf,test,parity,hub,zst,check]'
	touch $@

clean:  ## remove what make made
	rm -rf .venv .node build dist
