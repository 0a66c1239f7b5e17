# Two commands on a fresh machine, with Python 3.11 and make: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test lint bench clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/python -m pipeline.demo demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The better part of an hour; saved in benchmarks/results.json and results.md.
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

# The stamp is touched last, so an install that was cut off is done again.
$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv demo build *.egg-info
