SHELL = /bin/bash
PYTHON ?= .venv/bin/python
# One thread per process: tests and learners run side by side
export OMP_NUM_THREADS = 1
export MPLBACKEND = Agg
# Modules stay compiled, or each of the tests' processes would compile them anew
export PYTHONDONTWRITEBYTECODE =

.PHONY: install train gif test test-slow check lint format type imports docs pytest commit-checks clean

# Everything that development, training and tests need, in .venv. Modules are compiled when they are imported, and most never are
.venv/.installed: pyproject.toml constraints.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable ".[tests]"
	touch .venv/.installed

install: .venv/.installed

# The main job: watch a hierarchical agent learn to reach
train: install
	$(PYTHON) -m rl_zoo3.train --algo hddpg --env FetchReach-v2 --eval-freq 1000 --eval-episodes 50 -P

# See it: an agent is trained, and recorded with its subgoals in the scene
gif: install
	$(PYTHON) -m sb3_hrl watch --env FetchReach-v4 --train 2000 --output agent.gif --env-kwargs width:320 height:320

# Set up and check everything, as CI does
test: install check
	@echo "All checks passed. Left out: tests that learn for minutes (make test-slow)"

# The tests build the documentation. Types are checked beside them; when one of both fails, what mypy says comes last once more
check: lint imports
	$(MAKE) --jobs 2 type pytest || { $(MAKE) type; exit 1; }

lint:
	$(PYTHON) -m ruff check sb3_hrl tests benchmarks examples docs hatch_build.py
	$(PYTHON) -m ruff format --check sb3_hrl tests benchmarks examples docs hatch_build.py

format:
	$(PYTHON) -m ruff check --fix sb3_hrl tests benchmarks examples docs hatch_build.py
	$(PYTHON) -m ruff format sb3_hrl tests benchmarks examples docs hatch_build.py

type:
	$(PYTHON) -m mypy

imports:
	$(PYTHON) -c "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"

# The pages, into docs/_build/html; a warning is an error
docs:
	$(PYTHON) -m sphinx -W --keep-going -q -b html docs docs/_build/html

pytest:
	$(PYTHON) -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "not learning"

test-slow: install
	$(PYTHON) -m pytest -n logical --maxprocesses 4 -m learning

commit-checks: format check

clean:
	rm -rf .venv build dist docs/_build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
