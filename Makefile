# Everything lives inside the checkout: the environment in .venv, downloads and results in .cache.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
ARGS ?=

# Tests, demo and bench start Python hundreds of times: what it compiles is kept, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-full check format bench lock protos wheel clean

demo: $(READY)            ## serve real models, send real requests, show what came back (ARGS=--exit to end by itself)
	@$(BIN)/python examples/demo.py $(ARGS)

test: $(READY)            ## all tests; the slow fault and simulation suites are sampled
	@$(BIN)/python -m pytest $(ARGS)

test-full: $(READY)       ## all tests, the slow suites whole
	@OCTOSERVE_TEST_FULL=1 $(BIN)/python -m pytest $(ARGS)

check: $(READY)           ## lint, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(READY)           ## octoserve against what it would replace, in one run (ARGS=online, grpc, ...)
	@$(BIN)/python bench/run.py $(ARGS)

lock: $(READY)            ## pin every package again
	@$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --python-version 3.11 \
		pyproject.toml requirements/dev.in -o requirements/dev.txt
	@$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --python-version 3.11 \
		requirements/mlflow.in -o requirements/mlflow.txt

protos: $(READY)          ## compile src/octoserve/codecs/protos/*.proto
	@$(BIN)/python -m octoserve.codecs.protos.compile

wheel: $(READY)
	@$(BIN)/python -m build -q --wheel --no-isolation --outdir dist

clean:
	rm -rf .venv .cache dist .octoserve

$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("octoserve needs Python 3.11 or newer; this is " \
		+ sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv
	@$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements/dev.txt
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $(READY)
