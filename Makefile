# One screen of commands. Run them in a virtual environment.
.PHONY: help install train test lint types format bench options clean
.DEFAULT_GOAL := help

help:     ## this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 12

install:  ## everything for development, at the versions of the continuous integration
	pip install -c constraints.txt -e '.[dev]'

train:    ## the default run
	reppo train

test:     ## the tests
	pytest

lint:     ## ruff: lint and format check
	ruff check
	ruff format --check

types:    ## pyright
	pyright

format:   ## ruff: format and mend what it can
	ruff check --fix
	ruff format

bench:    ## throughput of rollout, targets and update, to results/throughput.csv
	python benchmarks/throughput.py --out results/throughput.csv

options:  ## write docs/options.md from the code
	python docs/generate_options.py

clean:    ## remove caches and builds; runs/ stays
	rm -rf .pytest_cache .ruff_cache .hypothesis build dist
	find src tests docs examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
