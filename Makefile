# Targets for people; CI calls `make test`. Every target makes .venv first, and that is instant where nothing changed.
SHELL := /bin/bash
NOTEBOOK ?= vae
PRESET ?= smoke
PARAMS ?=
BOOK ?= build/book
LAB ?=
PYTHON ?= python3
export PYTHON
BIN := .venv/bin
READY := .venv/.vinb-ready

.PHONY: help run test notebooks lab lint expected benchmarks book setup clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "%-12s %s\n", $$1, $$2}'
	@echo; echo 'variables: NOTEBOOK=vae PRESET=smoke|cpu|paper PARAMS="seed=1 latent_sizes=[2,10]" (run), LAB="--no-browser" (lab), PYTHON=python3.12 (set-up)'

setup: $(READY)  ## make .venv with the pinned packages of ci/requirements.txt

$(READY): ci/requirements.txt pyproject.toml ci/bootstrap.sh
	@ci/bootstrap.sh
	@touch $@

run: $(READY)  ## run a notebook through papermill: make run NOTEBOOK=vae PRESET=cpu PARAMS="seed=1"
	@$(BIN)/vinb run $(NOTEBOOK) --preset $(PRESET) $(foreach p,$(PARAMS),-p '$(p)')
	@if [ "$(PRESET)" = smoke ]; then printf '\nGo on with\n  make run PRESET=cpu     the same notebook on full MNIST, about six minutes on two cores\n  make lab                all notebooks in JupyterLab\n  make help               everything else\n'; fi

test: $(READY)  ## run all tests, each notebook at its smoke preset among them
	@$(BIN)/python -m pytest -n auto --dist worksteal

notebooks: $(READY)  ## run notebooks at the cpu preset and commit-ready outputs: make notebooks [NOTEBOOKS="vae"]
	@$(BIN)/python ci/notebooks.py $(NOTEBOOKS)

expected: $(READY)  ## refresh tests/expected/*.json from smoke runs
	@$(BIN)/python ci/expected.py $(NOTEBOOKS)

benchmarks: $(READY)  ## print the benchmarks' tables
	@for name in vae_step estimators correctness bayesian_layers changepoints analysis; do $(BIN)/python ci/benchmarks/$$name.py || exit 1; done

book: $(READY)  ## build the book from committed outputs and records; warnings are errors
	@$(BIN)/python -m sphinx -b html -W --keep-going -q -j 2 -d $(BOOK)/doctrees notebooks $(BOOK)/html
	@echo 'the book is $(BOOK)/html/index.html; to serve it: $(BIN)/python -m http.server --directory $(BOOK)/html'

lab: $(READY)  ## start JupyterLab in notebooks/: make lab [LAB="--no-browser --port=8890"]
	@[ "$$(id -u)" != 0 ] || echo 'make: this is root, as in a container, so JupyterLab gets --allow-root'
	@cd notebooks && ../$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB)

lint: $(READY)  ## ruff on code and notebooks, and the notebook standard
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/python ci/notebooks.py --check

clean:  ## remove the environment and caches, not the runs
	rm -rf .venv .cache .pytest_cache .ruff_cache
