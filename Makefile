# Every target sets up .venv by itself: with uv where it is installed, else with venv and pip.
SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.countersign-installed
# The clients of Node.js that are tested through the wire door; nothing where there is no npm.
NODE := tests/clients/node_modules/.countersign-installed
NODE_CLIENTS := $(if $(shell command -v npm 2>/dev/null),$(NODE))
ARGS ?=
# How many processes share the tests; a file is never split. JOBS=0 runs them in one, as one file runs fastest.
JOBS ?= auto

.PHONY: demo test check fmt bench constraints clean
.DEFAULT_GOAL := check

$(STAMP): pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv -q --allow-existing $(VENV) && \
	  uv pip install -q --python $(PY) -c constraints.txt --group dev -e '.[demo,saml]'; \
	else \
	  python3 -m venv $(VENV) && \
	  $(PY) -m pip install -q --disable-pip-version-check --upgrade 'pip>=25.1' && \
	  $(PY) -m pip install -q --disable-pip-version-check -c constraints.txt --group dev -e '.[demo,saml]'; \
	fi
	@touch $@

$(NODE): tests/clients/package.json
	npm install --prefix tests/clients --no-package-lock --no-audit --no-fund --loglevel=error
	@touch $@

demo: $(STAMP)
	@$(VENV)/bin/countersign demo $(ARGS)

test: $(STAMP) $(NODE_CLIENTS)
	$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(STAMP) $(NODE_CLIENTS)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache
	$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

fmt: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(STAMP)
	$(PY) -m bench $(ARGS)

# Needs uv. No line of the result names a registry.
constraints:
	uv pip compile pyproject.toml --all-extras --group dev --group fuzz --universal --no-header --no-annotate \
	  --no-emit-index-url --quiet --upgrade -o constraints.txt

clean:
	rm -rf $(VENV) tests/clients/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
