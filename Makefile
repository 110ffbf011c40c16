# The words to know: help setup run test check. Everything is made inside this folder.
.DEFAULT_GOAL := help
.SUFFIXES:
.PHONY: help setup setup-run run test check kafka contracts lock venv

PORT ?= 8080
DATA ?= .attache
BUS ?= local
VENV := .venv
IN_VENV := $(VENV)/bin/python
JS := tests/notifications/js

# the first Python of 3.11 or newer, under whatever name
FIND_PYTHON := for name in python3 python3.11 python3.12 python3.13 python3.14 python3.15 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$name && break; done
PYTHON ?= $(shell $(FIND_PYTHON))

help: ## Say what each word does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "make run takes PORT=8080, DATA=.attache (a folder), BUS=local|kafka, PLAY=1 (the trip step by step)"
	@echo "make test takes ARGS=, passed to pytest: make test ARGS='-k feed'"

setup: setup-run ## Make .venv and install what running, testing and checking need (run, test and check do it by themselves)
	$(call install,requirements-dev.txt)
	@if [ ! -f $(JS)/package-lock.json ]; then :; \
	elif ! command -v npm >/dev/null; then echo "npm is not installed: the tests that read feeds in JavaScript will be left out"; \
	elif ! cmp -s $(JS)/package-lock.json $(JS)/node_modules/.locked; then \
		npm ci --prefix $(JS) --no-audit --no-fund --silent && cp $(JS)/package-lock.json $(JS)/node_modules/.locked; fi

run: setup-run ## Start it all: database, three services, the demo trip; prints the feeds' addresses
	@exec $(IN_VENV) -m services up --port '$(or $(PORT),8080)' --data '$(or $(DATA),.attache)' --bus '$(or $(BUS),local)' \
		$(if $(filter-out 0,$(PLAY)),--play) --end-with-parent

test: setup ## Run all tests that this machine can, and say which it cannot and why
	@exec $(IN_VENV) -m pytest $(ARGS)

check: setup ## Style, types, boundaries, locks, and the docs against the code
	@$(IN_VENV) -m ruff check .
	@$(IN_VENV) -m ruff format --check .
	@$(IN_VENV) -m mypy
	@$(IN_VENV) -c 'from importlinter.cli import lint_imports_command as lint; lint()'
	@$(IN_VENV) -m deploy.lock check
	@$(IN_VENV) -m deploy.contracts check
	@$(IN_VENV) -m deploy.docs check
	@$(IN_VENV) -m pytest -q tests/docs

kafka: setup-run ## Start one Apache Kafka at 127.0.0.1:9092 (Java 17 or newer), until Ctrl-C
	@exec $(IN_VENV) -m deploy.kafka_node

contracts: setup ## Write schemas/ anew after a change of shared/contracts.py
	@$(IN_VENV) -m deploy.contracts

lock: setup ## Lock the requirements anew after a change in pyproject.toml (UPGRADE=1: take the newest of all)
	@$(IN_VENV) -m deploy.lock $(if $(filter-out 0,$(UPGRADE)),--upgrade)

setup-run: venv
	$(call install,requirements.txt)

venv:
	@if ! $(IN_VENV) -c '' 2>/dev/null; then \
		if [ -z "$(PYTHON)" ]; then \
			echo "Python 3.11 or newer is needed and none was found: install it, or name it with PYTHON=" >&2; exit 1; fi; \
		if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
			echo "$(PYTHON) is older than Python 3.11, or no Python at all" >&2; exit 1; fi; \
		if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
			echo "$(PYTHON) lacks its venv module: install it (Debian: apt-get install python3-venv)" >&2; exit 1; fi; \
		echo "making $(VENV) with $$($(PYTHON) -V)"; $(PYTHON) -m venv --clear $(VENV); fi

# install what a lock names, once, and again when the lock has changed
define install
	@if ! cmp -s $(1) $(VENV)/$(1); then \
		echo "installing $(1)"; \
		$(IN_VENV) -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $(1) && cp $(1) $(VENV)/$(1); fi
endef
