# The two commands of a newcomer are `make quickstart` and `make test`; both need Python 3.11 to 3.14 and make, nothing else.

PYTHON ?= python3
VENV ?= .venv
# The torch build that uv installs: cpu, cu128, auto ...; unset: the package index's own choice. See the README.
TORCH_BACKEND ?=
# Passed on, for example: make quickstart ARGS="--output /tmp/quickstart", make test ARGS="-k checkpoint"
ARGS ?=
# Processes of `make test`, each with a Ray cluster of its own where its tests need one; 0: one process, as pytest alone
TEST_PROCESSES ?= 2

PACKAGES := realcustom preprocessing training inference evaluation pipeline sprites

export TORCH_BACKEND
# Hundreds of processes import our files: where Python may not keep them compiled, each compiles them again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test check environment clean

quickstart:  ## make an environment, install what the run needs, and show the whole system at work
	@infra/install.sh "$(PYTHON)" "$(VENV)" all
	@"$(VENV)/bin/realcustom" quickstart $(ARGS)

test: environment  ## the fast test suite; ARGS=--cov: with coverage
	@"$(VENV)/bin/python" -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

check: environment  ## lint, format and types
	@"$(VENV)/bin/python" -m ruff check .
	@"$(VENV)/bin/python" -m ruff format --check .
	@"$(VENV)/bin/python" -m mypy
	@"$(VENV)/bin/basedpyright" --pythonpath "$(VENV)/bin/python" --warnings

environment:  ## the environment that tests and checks need
	@infra/install.sh "$(PYTHON)" "$(VENV)" dev

clean:  ## remove the environment, caches and build files; outputs/ stays
	rm -rf "$(VENV)" build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage
	find $(PACKAGES) tests benchmarks docs integrations -name __pycache__ -type d -prune -exec rm -rf {} +
