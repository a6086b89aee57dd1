# GNU make 3.81, which macOS ships, is enough.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help venv serve test lint check bench soak compose-test format lock image clean

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --require-hashes
# Written last, so that an interrupted install is simply done again. Each set holds the ones before it.
LIGHT_READY := $(VENV)/.ready-light
FULL_READY := $(VENV)/.ready
DEV_READY := $(VENV)/.ready-dev
# Without an NVIDIA GPU the portable artifact is served, by OpenVINO and without torch. What OpenVINO has no locked wheel
# for (Linux on Arm), whoever says FULL=1 and a .venv that is full already take the full set.
NEEDS_FULL := $(FULL)$(shell command -v nvidia-smi 2>/dev/null)$(filter Linux-aarch64,$(shell uname -s)-$(shell uname -m))
SERVE_READY := $(if $(NEEDS_FULL)$(wildcard $(FULL_READY)),$(FULL_READY),$(LIGHT_READY))
# The servers of `make bench`, whose requirements are their own; what decodes pictures comes from $(VENV).
BENCH_VENV := .venv-bench
BENCH_READY := $(BENCH_VENV)/.ready

# The first that is new enough and for which the locked torch has wheels.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && { echo $$p; exit; }; done; echo python3)

# HOST and PORT are short for two of the service's FREQMERGE_* settings, which win when both are given.
ifdef HOST
FREQMERGE_HOST ?= $(HOST)
export FREQMERGE_HOST
endif
ifdef PORT
FREQMERGE_PORT ?= $(PORT)
export FREQMERGE_PORT
endif

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(FULL_READY) ## prepare .venv for serving and training (PYTHON=python3.12 picks another Python)

# An engine that takes long to build is built once.
serve: export FREQMERGE_ENGINE_CACHE ?= $(CURDIR)/.cache/engines
serve: $(SERVE_READY) ## serve on port 8000 (HOST=, PORT= and any FREQMERGE_* setting override; FULL=1 brings torch)
	@exec $(BIN)/python -m service

# As many processes as the tests are sorted for: see tests/conftest.py.
test: $(DEV_READY) ## run the tests (PYTEST_ARGS="-k heatmap" picks some)
	$(BIN)/python -m pytest --numprocesses 2 $(PYTEST_ARGS)

lint: $(DEV_READY) ## check format, lint, types and the import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test ## everything that CI checks: lint, then the tests

bench: $(DEV_READY) $(BENCH_READY) ## measure the service, alone and beside other servers (BENCH_ARGS="--parts sweep")
	$(BIN)/python -m tests.load --peers-python $(BENCH_VENV)/bin/python $(BENCH_ARGS)
	$(if $(BENCH_ARGS),,$(BIN)/python -m tests.load.scale --kill)
	$(if $(BENCH_ARGS),,$(BIN)/python -m tests.load.scale --load http --layouts single 1x1 2x1)
	$(BIN)/python -m tests.load.tables

SOAK_S ?= 600
soak: $(DEV_READY) ## ten minutes of mixed and hostile load on a real server (SOAK_S=60 for one minute)
	$(BIN)/python -m tests.load.soak --seconds $(SOAK_S) $(SOAK_ARGS)
	$(BIN)/python -m tests.load.tables

compose-test: $(DEV_READY) ## build the image for CPUs and try what the containers promise, on a real Docker
	$(BIN)/python -m tests.compose $(COMPOSE_ARGS)

format: $(DEV_READY) ## format the code and mend what the linter can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-annotate --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)
LIGHT_LOCK := $(COMPILE) pyproject.toml --extra service --extra redis --extra otel --extra openvino
LOCK := $(LIGHT_LOCK) --extra torch --extra training --extra int8
BENCH_LOCK := $(COMPILE) tests/load/peers/requirements.in

lock: $(BIN)/uv ## write the lock files again (UPGRADE=1 takes the newest versions)
	$(LOCK) --output-file requirements.lock
	$(LIGHT_LOCK) --constraint requirements.lock --output-file requirements-light.lock
	$(LOCK) --extra dev --extra ray --constraint requirements.lock --output-file requirements-dev.lock
	$(BENCH_LOCK) --output-file requirements-bench.lock
	for image in gpu sbom; do \
		$(BIN)/uv pip compile docker/requirements-$$image.in --quiet --no-deps --universal --python-version 3.11 \
			--generate-hashes --no-annotate --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade) \
			--output-file docker/requirements-$$image.lock || exit; \
	done

# BUILD="podman build --format docker" where there is no Docker (the other format has no health check); SOURCE=URL says
# where the code is from.
TARGET ?= gpu
BUILD ?= docker build
image: ## build the container image freqmerge:gpu (TARGET=cpu for the other one)
	$(BUILD) --target $(TARGET) --tag freqmerge:$(TARGET) \
		--build-arg VERSION="$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' model/_version.py)" \
		--build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
		$(if $(SOURCE),--build-arg SOURCE="$(SOURCE)") .

clean: ## remove .venv and everything the tools leave behind
	rm -rf $(VENV) $(BENCH_VENV) build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A .venv that works is kept; one that is half made, or whose Python is gone or too old, is made again.
define MAKE_VENV
@{ $(BIN)/python -c '$(SUPPORTED)' && $(BIN)/python -m pip --version; } >/dev/null 2>&1 || { \
	command -v $(PYTHON) >/dev/null || { \
		echo "FreqMerge needs Python 3.11 to 3.14; found no $(PYTHON). Install one, or name it: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; }; \
	$(PYTHON) -c '$(SUPPORTED)' || { \
		echo "FreqMerge needs Python 3.11 to 3.14; found $$($(PYTHON) --version 2>&1 | head -n 1) as $(PYTHON). Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: its venv and ensurepip modules are missing. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	$(PYTHON) -m venv --clear $(VENV); }
endef

$(LIGHT_READY): requirements-light.lock
	$(MAKE_VENV)
	$(PIP_INSTALL) -r requirements-light.lock
	@touch $@

$(FULL_READY): requirements.lock
	$(MAKE_VENV)
	$(PIP_INSTALL) -r requirements.lock
	@touch $(LIGHT_READY) $@

$(DEV_READY): requirements.lock requirements-dev.lock
	$(MAKE_VENV)
	$(PIP_INSTALL) -r requirements-dev.lock
	@touch $(LIGHT_READY) $(FULL_READY) $@

# The last line lets the peers decode with the service's own code and its packages, which come after theirs.
$(BENCH_READY): requirements-bench.lock $(FULL_READY)
	$(BIN)/python -m venv --clear $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --disable-pip-version-check --require-hashes -r requirements-bench.lock
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
		"$$($(BENCH_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/freqmerge-service.pth"
	@touch $@

# Not from the lock, which may be what has to be mended.
$(BIN)/uv:
	$(MAKE_VENV)
	$(BIN)/python -m pip install --disable-pip-version-check uv
