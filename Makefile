# Each target sets up .venv by itself, with pip alone. PYTHON names the interpreter to start from.
PYTHON ?= python3
BIN := .venv/bin
NEWEST := .venv-upstream/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# A process on every core, one thread each; a file's tests stay together.
ONE_THREAD := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
PYTEST := $(BIN)/python -m pytest -q --durations=30
ON_ALL_CORES := -n logical --dist loadfile --no-loadscope-reorder
SOURCES := orpo_mlx benchmarks tests scripts
CHECK = $(BIN)/ruff check $(SOURCES) && $(BIN)/ruff format --check $(SOURCES) && $(BIN)/mypy

.PHONY: demo test test-fast test-long soak flake check fmt docs bench upstream install clean

demo: .venv/.core  ## fetch a small chat model, train it on bundled pairs, show before and after
	$(BIN)/orpo-mlx demo $(ARGS)

install: .venv/.all  ## the command line in .venv/bin/orpo-mlx, with all that its commands need

test: .venv/.test  ## what every change runs: lint and types next to the tests
	@{ $(CHECK); } > .venv/check.log 2>&1 & check=$$!; \
	$(ONE_THREAD) $(PYTEST) $(ON_ALL_CORES) -m "not long and not soak"; tests=$$?; \
	wait $$check; checked=$$?; cat .venv/check.log; \
	test $$tests -eq 0 -a $$checked -eq 0

test-fast: .venv/.test  ## the unit tests alone
	$(ONE_THREAD) $(PYTEST) $(ON_ALL_CORES) -m "not long and not soak and not parity"

test-long: .venv/.test  ## the demo whole, a wheel in a fresh environment, README's commands, llama.cpp
	$(ONE_THREAD) $(PYTEST) $(ON_ALL_CORES) -m "long and not soak"

soak: .venv/.test  ## what is long by repetition: damaged files by the ten thousand, and the like
	$(PYTEST) -m soak $(ARGS)

check: .venv/.test  ## lint, format, types
	$(CHECK)

fmt: .venv/.test  ## format, and fix what the linter can
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

docs: .venv/.core  ## docs/cli.md from the declared options
	$(BIN)/python scripts/build_cli_docs.py

bench: .venv/.all  ## this project's paths compared with mlx-lm-lora, or PART='steps tokens checks start sample'
	$(BIN)/python -m benchmarks$(if $(PART),.parts $(PART)) $(ARGS)

flake: .venv/.test  ## the touchy tests 20 times, half next to two busy loops, in random order
	OPENBLAS_NUM_THREADS=1 $(BIN)/python scripts/flake.py $(ARGS)

upstream:  ## what breaks with the newest mlx, mlx-lm, transformers, peft, hub; gates nothing
	test -x $(NEWEST)/python || $(PYTHON) -m venv .venv-upstream
	$(PYTHON) scripts/upstream_requirements.py > .venv-upstream/requirements.txt
	$(NEWEST)/python -m pip install --quiet --upgrade -r .venv-upstream/requirements.txt
	$(NEWEST)/python -m pip install --quiet --no-deps -e .
	$(NEWEST)/python -m pip list | grep -iE '^(mlx|transformers|peft|huggingface)'
	$(ONE_THREAD) $(NEWEST)/python -m pytest -q --noconftest tests/test_upstream*.py; names=$$?; \
	$(ONE_THREAD) $(NEWEST)/python -m pytest -q tests/model/test_families.py && exit $$names

.venv/.core: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "orpo-mlx needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || { \
		$(PYTHON) -m venv --clear --without-pip .venv && \
		$(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(PIP) -e '.[cpu,gguf]'
	touch $@

.venv/.all: .venv/.core
	$(PIP) -e '.[all]'
	touch $@

.venv/.test: .venv/.core
	$(PIP) -e '.[all,test,parity]'
	touch $@

clean:  ## remove what make made
	rm -rf .venv .venv-upstream .node build dist
