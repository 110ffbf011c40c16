# The words to know: help setup run test check. Everything is made inside this folder.
.DEFAULT_GOAL := help
.SUFFIXES:
.PHONY: help setup setup-run run test check kafka chaos contracts lock venv secrets up down backup restore drill compose-test doctor

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
	@echo "make up takes PORT=8080, BIND=127.0.0.1, CLUSTER=1, ARGS= (passed to docker compose up)"
	@echo "make test runs in several processes; with ARGS=, passed to pytest, in one: make test ARGS='-k feed'"
	@echo "make backup TO=folder; make restore FROM=folder; make drill: deploy/RUNBOOK.md"

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
	@exec $(IN_VENV) -m pytest $(or $(ARGS),-n auto)

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

secrets: ## Make what Docker Compose needs once: deploy/secrets and .env; nothing is overwritten
	@$(PYTHON) -m deploy.make_secrets

doctor: setup-run ## Look at what make run runs, and say what is not well and what to do (DATA=, ARGS=--json)
	@exec $(IN_VENV) -m services doctor --data '$(or $(DATA),.attache)' $(ARGS)

up: ## Start it all with Docker Compose, and wait until it is healthy (CLUSTER=1: three brokers)
	@$(PYTHON) -m deploy.up $(if $(filter-out 0,$(CLUSTER)),--cluster) $(ARGS)

down: ## Stop what make up started; the data stay (ARGS=-v: they go too)
	@docker compose --profile '*' down $(ARGS)

chaos: setup ## Break services, broker and database under load, prove that nothing is lost (ARGS='--only kill --minutes 5 --seed 7')
	@exec $(IN_VENV) -m tests.chaos $(ARGS)

compose-test: setup ## Try the Compose deployment for real, under a name and a port of its own
	@ATTACHE_TEST_DRILLS=1 exec $(IN_VENV) -m pytest tests/deploy tests/compose $(ARGS)

backup: ## Write the three databases of one moment to a new folder, TO=folder; the services go on
	@$(if $(TO),,echo "say where to: make backup TO=folder" >&2; exit 2;) \
	exec $(PYTHON) -m deploy.backup --to '$(TO)'

restore: ## Put a backup in the place of the databases, FROM=folder (KIND=dump: into another PostgreSQL; YES=1: asks nothing)
	@$(if $(FROM),,echo "say from where: make restore FROM=folder" >&2; exit 2;) \
	exec $(PYTHON) -m deploy.restore --from '$(FROM)' $(if $(KIND),--kind '$(KIND)') $(if $(filter-out 0,$(NOTHING_LOST)),--nothing-lost) $(if $(filter-out 0,$(YES)),--yes)

drill: ## Restore a backup of the running stack on empty volumes and compare (HERE=1 YES=1: wipes this stack's own)
	@exec $(PYTHON) -m deploy.drill $(if $(FROM),--from '$(FROM)') $(if $(TO),--to '$(TO)') $(if $(filter-out 0,$(HERE)),--here) $(if $(filter-out 0,$(YES)),--yes)

contracts: setup ## Write schemas/ anew after a change of shared/contracts
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
