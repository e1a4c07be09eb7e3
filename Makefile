# `make help` lists what one does daily.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
SEED ?= $(shell date +%s)
MODULE ?= optim

.PHONY: help demo test slow lint types format shuffle coverage mutants hooks table docs box bench soak clean

help: ## what there is to make
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4) and "budgetnet needs Python 3.11.4 or newer, found " + sys.version.split()[0] + ": set PYTHON=python3.12, say")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(INSTALLED) ## train, test and submit on data that needs no download
	$(BIN)/python examples/demo.py

test: $(INSTALLED) ## the tests, and which ten took longest
	$(BIN)/python -m pytest -n auto --dist loadfile --durations=10

slow: $(INSTALLED) ## the few tests that take longest, which the command above leaves out
	$(BIN)/python -m pytest -n auto -m slow

lint: $(INSTALLED) ## style, and the form of the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED) ## types
	$(BIN)/mypy

format: $(INSTALLED) ## put the code into its form, and fix of its style what can be fixed automatically
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .

shuffle: $(INSTALLED) ## the tests in an order of chance; SEED=7 is the order of another time
	$(BIN)/python -m pytest -n auto --dist loadfile --random-order-bucket=global --random-order-seed=$(SEED)

coverage: $(INSTALLED) ## which lines and branches no test reaches, in build/coverage; fails under 95 %
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n auto --dist loadfile -m "not several"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage html --quiet
	$(BIN)/coverage report --skip-covered

mutants: $(INSTALLED) ## which changes of MODULE=optim no test of tests/test_optim.py notices, in minutes
	$(BIN)/python reliability/mutants.py $(MODULE)

hooks: $(INSTALLED) ## have git check style and types before a commit, and the tests before a push
	$(PYTHON) -m venv .venv/hooks
	.venv/hooks/bin/python -m pip install --quiet --disable-pip-version-check pre-commit==4.7.0
	.venv/hooks/bin/pre-commit install

table: $(INSTALLED) ## README's and docs' tables from the records in results/, the modules' picture from the imports
	$(BIN)/python results/records.py table
	$(BIN)/python benchmarks/figures.py
	$(BIN)/python benchmarks/deploy.py
	$(BIN)/python benchmarks/small.py
	$(BIN)/python reliability/faults.py
	$(BIN)/python reliability/licences.py
	$(BIN)/python docs/images/architecture.py

docs: $(INSTALLED) ## the documentation as a site that needs no network, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

box: $(INSTALLED) ## put the best of RUNS='RUN ...' into the box, if it is better than what is there
	$(BIN)/python results/box.py $(RUNS)

bench: $(INSTALLED) ## speed against plain PyTorch, in under 15 minutes; writes docs/speed.md
	$(BIN)/python benchmarks/bench.py

soak: $(INSTALLED) ## campaigns of faults, in hours; writes docs/reliability.md
	$(BIN)/python reliability/load.py
	$(BIN)/python reliability/death.py
	$(BIN)/python reliability/storage.py
	$(BIN)/python reliability/days.py
	$(BIN)/python reliability/hostile.py
	$(BIN)/python reliability/orders.py
	$(BIN)/python reliability/faults.py

clean: ## what was made, but for .venv, data and runs
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache src/*.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
