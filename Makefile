# Every target describes itself: `make` or `make help` prints them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.hashlens-installed

.DEFAULT_GOAL := help
.PHONY: help setup browser demo test test-slow trips crash-test lowest lint types format bench docs docs-site clean

help:  ## show these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(STAMP): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

setup: $(STAMP) browser  ## virtual environment with every extra, and Chromium for the page's tests

browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	  echo "Chromium is missing; installing it for the page's tests"; \
	  if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	    apt-get update -qq && apt-get install -y -qq chromium >/dev/null; \
	  else echo "not root, or no apt-get: install chromium by hand; the page's tests are skipped without it"; fi; }

demo: $(STAMP)  ## train, index, search and evaluate on real handwriting, without a download
	$(BIN)/hashlens demo

test: setup  ## the default test suite (under 15 minutes on two cores)
	$(BIN)/python -m pytest

test-slow: setup  ## the tests marked slow
	$(BIN)/python -m pytest -m slow

trips: $(STAMP)  ## the first hour of three newcomers, from a freshly built wheel in a fresh environment
	rm -rf build/trips
	$(BIN)/python -m build --wheel --outdir build/trips .
	$(BIN)/uv venv --quiet --python $(BIN)/python build/trips/venv
	VIRTUAL_ENV=build/trips/venv $(BIN)/uv pip install --quiet -c constraints.txt \
	  "hashlens[train,serve,heic] @ file://$$(ls $(CURDIR)/build/trips/*.whl)" pytest hypothesis httpx
	build/trips/venv/bin/python -m pytest -m slow --durations=0 tests/test_newcomers.py

crash-test: $(STAMP)  ## kill writers at random moments, 300 times, and check every index
	$(BIN)/python -m pytest -m "slow or not slow" tests/index/test_crash.py --kills 300

lowest: $(STAMP)  ## a short trip at the lowest versions allowed, on each Python found
	UV=$(BIN)/uv .ci/lowest

lint: $(STAMP) types  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy --strict on src/
	$(BIN)/mypy

format: $(STAMP)  ## apply ruff's fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## search speed beside recall, against FAISS and USearch
	$(BIN)/hashlens bench search

docs: $(STAMP)  ## regenerate docs/reference/cli.md and check the documentation
	$(BIN)/python docs/generate_cli_reference.py
	$(BIN)/python -m pytest tests/docs

docs-site: $(STAMP)  ## the documentation as a site with search, in site/
	$(BIN)/mkdocs build --strict

clean:  ## remove caches and build output
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
