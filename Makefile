# make all   set up, then run the default sweep: tables, plots, report
# make test  set up, then run the tests
# make ui    the MLflow UI on http://127.0.0.1:$(PORT), runs in progress included
CORES ?= all
SUITE ?= quick
PORT ?= 5000

.PHONY: all test ui setup clean

all: setup
	+.venv/bin/snakemake --cores $(CORES) --config suite=$(SUITE) -- all

test: setup
	+.venv/bin/python -m pytest

ui: setup
	.venv/bin/python -m workflow.track ui --port $(PORT)

setup:
	@sh tools/setup.sh

# Only what the set-up and the tests made; results, reports and prepared data stay.
clean:
	rm -rf .venv .cache .pytest_cache .hypothesis .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
