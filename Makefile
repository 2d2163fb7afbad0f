# make all    set up, then run the suite of config/config.yaml (or SUITE=...): tables, plots, report
# make test   set up, then run the tests, two at a time
# make lint   set up, then check the format, the code and the types (ruff, mypy)
# make soak   set up, then run the long fault tests (55 random kills, at most 20 minutes) and 10,800 wrong files
# make ui     show the runs in MLflow on http://127.0.0.1:$(PORT), also those that still train
# make bench  measure speed and memory, to results/benchmarks/ (JPEGS=folder: ImageNet's loader, too)
# make setup  only set up; PYTHON=python3.12 chooses another interpreter
# make clean  delete what the set-up and the tests made; results and prepared data stay
CORES ?= all
PORT ?= 5000

# Snakemake writes a cache. Where the home folder is read-only, the cache goes into this folder.
ifneq ($(shell mkdir -p "$$HOME/.cache" 2>/dev/null && test -w "$$HOME/.cache" && echo yes),yes)
export XDG_CACHE_HOME ?= $(CURDIR)/.cache
endif

.PHONY: all test lint soak bench ui setup clean

all: setup
	.venv/bin/snakemake --cores $(CORES) $(if $(SUITE),--config suite=$(SUITE) --) all

test: setup
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

soak: setup
	.venv/bin/python -m pytest tests/fault tests/deploy -m soak -v

bench: setup
	.venv/bin/python tools/peers.py bench
	.venv/bin/python -m benchmarks $(if $(JPEGS),--jpegs $(JPEGS))

ui: setup
	.venv/bin/python -m workflow.track ui --port $(PORT)

setup:
	@sh tools/setup.sh

clean:
	rm -rf .venv .cache .pytest_cache .hypothesis .ruff_cache .mypy_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
