# A fresh machine needs only `make demo` or `make test`: each makes the virtual environment by itself.
# Byte-code is compiled at install time: without it every process compiles torch, Ray and MLflow again wherever
# PYTHONDONTWRITEBYTECODE is set or the environment is read-only.
PYTHON ?= python3
DATA ?=
ARGS ?=
IMAGE ?=
BIN := .venv/bin
CORES ?= $(shell nproc)
# Processes of tests: one more than cores, because tests with Ray or a server wait for their processes.
PROCESSES ?= $(shell expr $(CORES) + 1)
PYTEST := $(BIN)/python -m pytest --dist loadgroup --no-loadscope-reorder
COMPILE := $(BIN)/uv pip compile -q --universal --python-version 3.11 pyproject.toml --generate-hashes \
	--no-emit-index-url --custom-compile-command "make lock"
# The tests start hundreds of processes, which would otherwise all compile the code and the tests anew.
unexport PYTHONDONTWRITEBYTECODE
export DO_NOT_TRACK = 1
export RAY_USAGE_STATS_ENABLED = 0
export MLFLOW_DISABLE_TELEMETRY = true

.PHONY: demo check light test parallel test-all test-kubernetes lint style types imports docs bench bench-gpu audit lock manifests pipelines clean
.DEFAULT_GOAL := test

.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q uv==0.13.9
	$(BIN)/uv pip sync -q --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e .
	$(BIN)/python -m compileall -q -j 0 ast_core pipeline tune
	touch $@

demo: .venv/.installed  ## Run the main job on audio that it makes itself, or on DATA=FOLDER
	$(BIN)/python pipeline/run.py --recipe $(if $(DATA),own --data.source "$(DATA)",demo) $(ARGS)

check: .venv/.installed  ## Check style, types and imports, and run the quick tests that start neither Ray nor a server
	@$(MAKE) --no-print-directory -j 2 types light style imports

light: .venv/.installed
	$(PYTEST) -n $(CORES) -m "not ray and not server and not slow" $(ARGS)

test: .venv/.installed  ## Run all checks and tests, as CI does
	@$(MAKE) --no-print-directory -j 2 lint parallel

parallel: .venv/.installed
	$(PYTEST) -n $(PROCESSES) $(ARGS)

test-all: lint  ## Run all tests with many more faults, and print a figure for each promise
	$(PYTEST) --long $(ARGS)

test-kubernetes: .venv/.installed  ## Run the product on a real Kubernetes: that of KUBECONFIG, or one node that this makes as root
	$(PYTEST) -n 0 --kubernetes tests/kubernetes/one_node $(ARGS)

lint: style types imports  ## Check style, types and imports

style: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed
	$(BIN)/mypy

imports: .venv/.installed
	$(BIN)/lint-imports

docs: .venv/.installed  ## Build the documentation site into site/, and stop at every warning
	NO_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build --strict

bench: .venv/.installed  ## Measure every headline figure and its peer
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

bench-gpu:  ## Measure on one GPU in eight minutes, with PYTHON's packages instead of .venv: torch, torchaudio, pyarrow
	$(PYTHON) benchmarks/gpu.py --out gpu.json $(ARGS)

audit: .venv/.installed  ## Ask PyPI for known weaknesses of the dependencies; needs the network
	$(BIN)/uv tool run pip-audit==2.10.1 --strict --disable-pip --no-deps -r requirements.lock

lock: .venv/.installed  ## Resolve requirements.lock and the image's lock again
	$(COMPILE) --extra ffmpeg --extra server --extra serve --extra optuna --extra cluster --group dev -o requirements.lock
	$(COMPILE) --extra ffmpeg --extra server --extra serve --extra optuna --extra cluster -c requirements.lock -o k8s/image/requirements.lock

manifests: .venv/.installed  ## Write k8s/jobs from k8s/values/values.yaml and the overlays
	$(BIN)/python k8s/generate_jobs.py

pipelines: .venv/.installed  ## Compile the Kubeflow pipelines to the committed YAML
	$(if $(IMAGE),IMAGE=$(IMAGE)) $(BIN)/python k8s/kubeflow/pipelines.py

clean:  ## Remove the virtual environment and caches, but not the runs in work/
	rm -rf .venv build site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
