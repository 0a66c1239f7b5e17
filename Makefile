# Two commands on a fresh machine, with Python 3.11 and make: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-distributed lint bench clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/python -m pipeline.demo demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

# Real clusters and object stores on loopback; needs Java and Maven, and says so where it skips.
test-distributed: .venv/.distributed
	$(BIN)/python -m pytest tests/distributed -rs

.venv/.distributed: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,distributed]'
	touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# More than an hour; saved in benchmarks/results.json and results.md, heads.json and finetune.json.
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.heads > benchmarks/heads.json
	$(BIN)/python -m benchmarks.finetune > benchmarks/finetune.json

# The stamp is touched last, so an install that was cut off is done again.
$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv demo build *.egg-info
