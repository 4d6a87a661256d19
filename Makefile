# `make` lists the targets. PYTHON=... chooses the interpreter that .venv is made with.
SHELL := bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test check format smoke bench reproduce grid recipes siblings ranks kills plan docs wheel clean

BIN := .venv/bin
MODERN := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
# The lines of pip worth reading: what it fetches, and that it is still at work.
PROGRESS := awk '/(Downloading|Using cached) / && !/metadata/ { print; fflush() } /^Installing collected/ { print "  unpacking"; fflush() }'

help: ## list the targets
	@awk -F ': .*## ' '/^[a-z]+:.* ## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(BIN)/.stamp ## install mmssl and its tools into .venv, once

$(BIN)/.stamp: pyproject.toml constraints.txt
	@set -eu -o pipefail; \
	if ! $(BIN)/python -c '$(MODERN)' 2> /dev/null; then \
	  found=; \
	  for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
	    if "$$python" -c '$(MODERN)' > /dev/null 2>&1; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "mmssl needs Python 3.11 or newer with its venv module; tried: $(or $(PYTHON),python3.13 python3.12 python3.11 python3)." >&2; \
	    echo "Install one (on Debian and Ubuntu also the package python3-venv), or name it: make setup PYTHON=/path/to/python" >&2; \
	    exit 1; \
	  fi; \
	  echo "making .venv with $$("$$found" --version)"; \
	  "$$found" -m venv --clear .venv; \
	fi; \
	echo "installing mmssl and its dependencies into .venv; the first time this fetches torch and takes some minutes"; \
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[dev]' | $(PROGRESS); \
	touch $@; \
	echo "done: . .venv/bin/activate, then mmssl --help"

demo: setup ## pre-train a small masked autoencoder on the shipped images, with scores and a report
	@$(BIN)/mmssl pretrain image/mae data=sample

test: setup ## run the tests, a file per process; ARGS=... goes to pytest
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

check: setup ## lint, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python

format: setup ## sort imports, mend what ruff can, and format
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

smoke: setup ## two steps of each recipe through the command line
	@$(BIN)/python benchmarks/smoke.py $(BIN)/mmssl

bench: setup ## steps, epochs and start-up beside plain references, those not measured yet; DATA=folder of the sets, ARGS='mae --again'
	@$(BIN)/python -m benchmarks.speed --write --table $(if $(DATA),--data $(DATA)) $(ARGS)

reproduce: setup ## run the jobs of docs/results that are not done yet; DATA=folder of the sets, JOBS='graph-*'
	@$(BIN)/python -m benchmarks.reproduce $(or $(DATA),$(error DATA is missing: make reproduce DATA=FOLDER)) $(JOBS)

grid: setup ## six modalities times four families, three seeds, what is missing; DATA=folder of the sets, JOBS='grid-image-*'
	@$(BIN)/python -m benchmarks.reproduce $(or $(DATA),$(error DATA is missing: make grid DATA=FOLDER)) $(or $(JOBS),'grid-*')
	@$(BIN)/python -m benchmarks.reproduce --grid

recipes: setup ## train every recipe for three minutes, those not done yet; DATA=folder of the sets, JOBS='recipe-image-*'
	@$(BIN)/python -m benchmarks.reproduce $(or $(DATA),$(error DATA is missing: make recipes DATA=FOLDER)) $(or $(JOBS),'recipe-*')
	@$(BIN)/python -m benchmarks.reproduce --recipes

siblings: setup ## methods beside simpler ones at equal steps, what is missing; DATA=folder of the sets, JOBS='sibling-clouds-*'
	@$(BIN)/python -m benchmarks.reproduce $(or $(DATA),$(error DATA is missing: make siblings DATA=FOLDER)) $(or $(JOBS),'sibling-*')
	@$(BIN)/python -m benchmarks.reproduce --siblings

ranks: setup ## all recipes on 2 and 4 ranks against 1, DDP and FSDP; takes about 40 minutes
	@$(BIN)/python -m benchmarks.ranks --write

kills: setup ## kill runs at random moments and compare their ends with those of undisturbed ones
	@$(BIN)/python -m benchmarks.kills

plan: setup ## the memory that mmssl plan foretells beside that of real runs; takes about ten minutes
	@$(BIN)/python -m benchmarks.plan --write

docs: setup ## build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

wheel: setup ## build the wheel and the source archive into dist/
	@rm -rf dist
	@$(BIN)/python -m hatchling build

clean: ## remove build products and caches; .venv and runs/ stay
	@rm -rf build dist site .pytest_cache .ruff_cache
	@find mmssl tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
