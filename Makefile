# Each target sets up what it needs from a bare clone (see scripts/setup) and says clearly what it may not install.
PY := .venv/bin/python
SHELL := /bin/sh
.DEFAULT_GOAL := help

.PHONY: help demo test check fmt lint types contracts bench fuzz lock setup

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: setup-demo ## a real sandbox, three requests, policy decides
	@.venv/bin/sbx demo network

test: setup-check ## every test that this machine can run, in parallel
	@$(PY) -m pytest -n 2 --dist loadgroup

check: setup-check fmt-check lint types contracts test ## what CI runs: format, lint, types, layer contracts, tests

fmt: setup-check ## format the sources
	@.venv/bin/ruff format src tests bench fuzz hatch_build.py
	@.venv/bin/ruff check --fix -q src tests bench fuzz hatch_build.py

.PHONY: fmt-check
fmt-check: setup-check
	@.venv/bin/ruff format --check -q src tests bench fuzz hatch_build.py

lint: setup-check
	@.venv/bin/ruff check -q src tests bench fuzz hatch_build.py

types: setup-check
	@.venv/bin/mypy

contracts: setup-check
	@.venv/bin/lint-imports --no-cache | sed -n '/Contracts/,$$p'

bench: setup-bench ## the benchmark of the gateway beside its peers, and sandbox start-up; prints ratios
	@$(PY) -m bench

fuzz: setup-check ## coverage-guided fuzzing of every parser of hostile bytes (SECONDS=60 for each)
	@$(PY) -m fuzz --seconds $(or $(SECONDS),60)

lock: setup-check ## resolve requirements.lock anew (needs `uv`)
	@uv pip compile pyproject.toml --group dev --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --universal -q -o requirements.lock

setup: setup-check ## everything that the targets need, and nothing else

.PHONY: setup-demo setup-check setup-bench
setup-demo setup-check setup-bench: setup-%:
	@scripts/setup $*
