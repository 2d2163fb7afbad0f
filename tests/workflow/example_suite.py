"""A small suite that the tests of suites change, and what they look at."""

import copy

import yaml

from workflow.suite.suite import parse_suite

RECIPE = {
    "epochs": 2,
    "batch_size": 64,
    "lr": 0.05,
    "weight_decay": 0.0001,
    "train_images": 640,
    "val_images": 256,
    "augmentation": "none",
}
BASE = {
    "suite": "smoke",
    "runs_per_job": 2,
    "recipes": {
        "first": dict(RECIPE),
        "tune": {**RECIPE, "lr": 0.02},
        "spare": {**RECIPE, "lr": 0.01},
    },
    "experiments": [
        {
            "dataset": "digits",
            "arch": "resnet20",
            "arch_options": {"width": 8, "stem": "small"},
            "checkpoint_recipe": "first",
            "recipe": "tune",
            "methods": ["fp", "direct", "pact"],
            "bits": ["W2A2", "W1A32"],
            "seeds": [0, 1],
            "ablations": [{"methods": ["indirect"], "bits": ["W2A2"]}],
        },
        {
            "dataset": "digits",
            "arch": "alexnet",
            "arch_options": {"width": 2, "stem": "small"},
            "checkpoint_recipe": "first",
            "recipe": "spare",
            "methods": ["fp", "lq_nets"],
            "bits": ["W3A3"],
            "seeds": [0],
        },
    ],
}
MISSING = object()
E0, TUNE = ("experiments", 0), ("recipes", "tune")


def changed(path, value):
    """The base suite with one value replaced (or removed)."""
    config = copy.deepcopy(BASE)
    place = config
    for part in path[:-1]:
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return config


def parse(config):
    return parse_suite(yaml.safe_dump(config), "my.yaml")


def runs(config):
    return {run["run_id"]: run for job in parse(config).jobs.values() for run in job.runs}


def identity(run):
    """What a run is called in the suite, whatever its key."""
    return run["dataset"], run["arch"], run["method"], run["w_bits"], run["seed"], run["role"]


def keys(config):
    return {identity(run): run["run_key"] for run in runs(config).values()}
