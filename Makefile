# Everything runs in .venv, which is made from the lock (requirements.txt).
PYTHON ?= python3
CORES ?= 2
ARGS ?=
RECIPE ?= config/recipes/opt-13b.yaml

VENV := .venv
MINIATURE = miniature/$(basename $(notdir $(RECIPE)))
MEASUREMENTS := gpu memory mutation # of the project itself; beside them Snakemake puts those of each run
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
STAMP := $(VENV)/.installed

.PHONY: help setup demo miniature test planted mutation check format docs status clean

help: ## Show the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP) ## Make the environment in .venv

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; run: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## Run the embedded experiment to the report
	snakemake --cores $(CORES) $(ARGS)
	snakemake --cores 1 --report results/report.html
	@echo "report: results/report.html"

miniature: setup ## Run a recipe with tiny models and few steps: RECIPE=config/recipes/FILE.yaml
	@mkdir -p $(MINIATURE)
	python -m tests.hub run -- snakemake --cores $(CORES) --directory $(MINIATURE) --configfile $(abspath $(RECIPE)) $(CURDIR)/config/miniature.yaml $(ARGS)
	@echo "results: $(MINIATURE)/results"

test: setup ## Run the tests; ARGS is passed to pytest
	pytest -n $(CORES) --dist loadfile --no-loadscope-reorder --durations 50 $(ARGS)

planted: setup ## Plant the listed faults, one at a time, and expect red tests
	python -m tests.planted $(ARGS)

mutation: setup ## Measure how many small changes of the code the tests notice
	pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[mutation]'
	python -m benchmarks.mutation $(ARGS)

check: setup ## Lint, format and type checks
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow/Snakefile workflow/rules
	mypy

format: setup ## Format the code
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow/Snakefile workflow/rules

docs: setup ## Regenerate the configuration's schema and manual, and the table of flags
	python -m rlhf.manual
	python -m rlhf.convert.documentation

status: setup ## Show the stages: running, done, failed
	rlhf-status

clean: ## Remove results and caches of this folder; .venv stays
	rm -rf results resources state logs .mutation .snakemake .pytest_cache .ruff_cache .mypy_cache .hypothesis
	rm -rf $(filter-out $(MEASUREMENTS:%=benchmarks/%/),$(wildcard benchmarks/*/))
