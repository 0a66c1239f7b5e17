# Two commands on a fresh machine, with Python 3.11 and make: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-long fuzz torture test-clusters test-stores test-browser test-elsewhere lint bench clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/python -m pipeline.demo demo

# Two files at a time: half of the minutes are work of one core. Not the files with most tests first, which would keep the real
# network's few long tests for the end, when the other core has nothing to do.
test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not long" -n 2 --dist loadfile --no-loadscope-reorder --durations=30 --durations-min=5

# What takes many seconds each: kills again and again, the real network, fine-tuning.
test-long: $(INSTALLED)
	$(BIN)/python -m pytest -m long -n 2 --dist loadfile --no-loadscope-reorder --durations=10

# Spoiled files of every kind through the real readers, then extract killed at any moment; ends at the first finding, and says
# how to repeat it.
FUZZ_SECONDS ?= 150
KILL_SECONDS ?= 100
FUZZ_SEED ?= 0
fuzz: $(INSTALLED)
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) --kill-seconds $(KILL_SECONDS) --seed $(FUZZ_SEED)

# The property tests again, from fresh seeds, with twenty times the examples; and an hour of spoiled files and half an hour of
# kills, from a seed of the day. A failure prints how to repeat it.
torture: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 -m hypothesis --hypothesis-profile=torture --timeout=0
	$(BIN)/python -m tests.fuzz --seconds 3600 --kill-seconds 1800 --seed $$(date +%Y%m%d)

# Real clusters on loopback; needs Java and Maven, and says so where it skips.
test-clusters: .venv/.distributed
	$(BIN)/python -m pytest tests/distributed/test_runners.py tests/distributed/test_faults.py -rs

# Object stores on loopback, Dataflow's job, the image of its workers.
test-stores: .venv/.distributed
	$(BIN)/python -m pytest tests/distributed -rs --ignore-glob='*/test_runners.py' --ignore-glob='*/test_faults.py'

.venv/.distributed: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,distributed]'
	touch $@

# The pages in a headless Chromium, from Debian's packages; says so where it skips.
test-browser: $(INSTALLED)
	command -v chromium >/dev/null || { apt-get update --quiet && apt-get install --yes --quiet chromium; }
	$(BIN)/python -m pytest tests/browser -rs

# The snippets of docs/query.md in the tools that they are for, and a network as Keras exports it to ONNX; PySpark needs
# Java 17, and says so where it skips.
test-elsewhere: .venv/.elsewhere
	$(BIN)/python -m pytest tests/elsewhere -rs

.venv/.elsewhere: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,elsewhere]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps embedding-atlas==0.26.0
	touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# More than an hour; saved in benchmarks/results.json and results.md, heads.json, finetune.json, query.json and map.json.
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.heads > benchmarks/heads.json
	$(BIN)/python -m benchmarks.finetune > benchmarks/finetune.json
	$(BIN)/python -m benchmarks.query > benchmarks/query.json
	$(BIN)/python -m benchmarks.map > benchmarks/map.json

# The stamp is touched last, so an install that was cut off is done again.
$(INSTALLED): setup.py constraints.txt $(wildcard transforms/engines/winograd/*.[ch]pp)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv demo build *.egg-info
