# make all    set up, then the sweep of config/config.yaml (or SUITE=...): tables, plots, report
# make test   set up, then the tests
# make soak   at least 25 random kills of sweeps, and more: 20 minutes at the most
# make ui     the MLflow UI on http://127.0.0.1:$(PORT), runs in progress included
# make bench  speed and memory against peers, to results/benchmarks/ (JPEGS=folder: ImageNet's loader too)
# make setup  only the set-up; PYTHON=python3.12 names another interpreter
CORES ?= all
PORT ?= 5000

# Snakemake writes a cache; a home folder that cannot be written must not stop it.
ifneq ($(shell mkdir -p "$$HOME/.cache" 2>/dev/null && test -w "$$HOME/.cache" && echo yes),yes)
export XDG_CACHE_HOME ?= $(CURDIR)/.cache
endif

.PHONY: all test soak bench ui setup clean

all: setup
	.venv/bin/snakemake --cores $(CORES) $(if $(SUITE),--config suite=$(SUITE) --) all

test: setup
	.venv/bin/python -m pytest

soak: setup
	.venv/bin/python -m pytest tests/fault -m soak -v

bench: setup
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	.venv/bin/python -m benchmarks $(if $(JPEGS),--jpegs $(JPEGS))

ui: setup
	.venv/bin/python -m workflow.track ui --port $(PORT)

setup:
	@sh tools/setup.sh

# Only what the set-up and the tests made: results, reports and prepared data stay.
clean:
	rm -rf .venv .cache .pytest_cache .hypothesis .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
