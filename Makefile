# `make demo` and `make test` are all that a fresh machine needs; each makes the virtual environment by itself.
PYTHON ?= python3
DATA ?=
ARGS ?=
IMAGE ?=
BIN := .venv/bin
COMPILE := $(BIN)/uv pip compile -q --universal --python-version 3.11 pyproject.toml --generate-hashes \
	--no-emit-index-url --custom-compile-command "make lock"
export DO_NOT_TRACK = 1
export RAY_USAGE_STATS_ENABLED = 0
export MLFLOW_DISABLE_TELEMETRY = true

.PHONY: demo test test-all lint bench audit lock pipelines clean
.DEFAULT_GOAL := test

.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q uv==0.13.9
	$(BIN)/uv pip sync -q --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e .
	$(BIN)/python -m compileall -q -j 0 ast_core pipeline tune
	touch $@

demo: .venv/.installed  ## The main job: on audio that it makes itself, or on DATA=FOLDER
	$(BIN)/python pipeline/run.py --recipe $(if $(DATA),own --data.source "$(DATA)",demo) $(ARGS)

test: lint  ## All checks and tests
	$(BIN)/python -m pytest $(ARGS)

test-all: lint  ## The same with many more faults, and a figure for each promise
	$(BIN)/python -m pytest --long $(ARGS)

lint: .venv/.installed  ## Style, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.installed  ## Every headline figure against its peer
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

audit: .venv/.installed  ## Known weaknesses of the dependencies, by PyPI; needs the network
	$(BIN)/uv tool run pip-audit==2.10.1 --strict --disable-pip --no-deps -r requirements.lock

lock: .venv/.installed  ## Resolve requirements.lock and the image's again
	$(COMPILE) --extra server --extra cluster --group dev -o requirements.lock
	$(COMPILE) --extra server --extra cluster -c requirements.lock -o k8s/image/requirements.lock

pipelines: .venv/.installed  ## Compile k8s/kubeflow's pipelines to the YAML that is committed
	$(if $(IMAGE),IMAGE=$(IMAGE)) $(BIN)/python k8s/kubeflow/pipelines.py

clean:  ## Remove the virtual environment and caches; runs in work/ stay
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
