# Nothing but Python 3.11, make and bash is needed: everything else is installed into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help up demo test check bench chaos mutants format lock clean install install-dev install-servers

PY := .venv/bin/python

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

up: install ## install, run the platform, print its addresses and a line beginning "ready"
	@exec .venv/bin/renoveasy up

demo: install ## play customers and workers against the running platform
	@exec .venv/bin/renoveasy demo

test: install-dev install-servers ## every test: rules, contracts on real servers, real clusters
	@exec tests/run.sh $(PYTEST_ARGS)

check: install-dev ## what must hold before a commit: format, lint, types, layers, fast tests
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports
	$(PY) -m pytest tests/unit -q

bench: install-dev ## measure, with a report under benchmarks/results
	@exec .venv/bin/renoveasy bench

chaos: install-dev install-servers ## crashes, outages and hostile clients at length, with a report; see docs/reliability.md
	@RENOVEASY_CHAOS=full exec $(PY) -m pytest tests/chaos tests/simulation tests/security --timeout 3600 -s $(PYTEST_ARGS)

mutants: install-dev install-servers ## plant small mistakes and see that a test notices each; see docs/mutation.md
	@exec $(PY) -m tests.mutation --report benchmarks/results $(MUTANTS_ARGS)

format: install-dev ## format and sort imports
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

lock: ## resolve the pinned versions anew (needs uv)
	uv pip compile pyproject.toml --universal --python-version 3.11 --no-emit-index-url --no-annotate -q \
	  --custom-compile-command "make lock" -o requirements.txt
	uv pip compile pyproject.toml --extra dev -c requirements.txt --universal --python-version 3.11 --no-emit-index-url \
	  --no-annotate -q --custom-compile-command "make lock" -o requirements-dev.txt

clean: ## remove everything that was installed or generated; the data folder var/ stays
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
	find . -name node_modules -not -path './.git/*' -prune -exec rm -rf {} +

install:
	@deploy/install.sh run

install-dev:
	@deploy/install.sh dev

install-servers:
	@deploy/install.sh servers
