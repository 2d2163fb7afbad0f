"""The configuration of a sweep: config/config.yaml with the `--config` overrides."""

from pathlib import Path

from lowbit_core.runtime.errors import InputError
from workflow.suite.suite import Suite, check_choice, load_suite

KEYS = {
    "suite": str,
    "datasets": str,
    "compile": str,
    "budget_minutes": int,
    "per_gpu": int,
    "gpus_per_run": int,
    "data": str,
    "data_source": str,
    "download": bool,
}
TRUTH = {"true": True, "false": False}
MINIMUM = {"budget_minutes": 0, "per_gpu": 1, "gpus_per_run": 1}


def configured_suite(config: dict) -> Suite:
    """The suite that the configuration names; raises InputError for anything wrong in either."""
    for key, kind in KEYS.items():
        if kind is str and config.get(key, "") is None:  # Snakemake reads `suite=` so
            config[key] = ""
    if config.get("compile") is False:  # YAML reads the word `off` so
        config["compile"] = "off"
    if str(config.get("download")) in TRUTH:  # Snakemake takes `download=false` for a word
        config["download"] = TRUTH[str(config["download"])]
    check_config(config)
    suite = load_suite(config["suite"], config["compile"]).only(config["datasets"])
    for name, recipe in suite.config["recipes"].items():
        if recipe["batch_size"] % config["gpus_per_run"]:
            raise InputError(
                f"configuration gpus_per_run is {config['gpus_per_run']}: it must divide the "
                f"batch_size of every recipe of suite {suite.name!r}, and that of {name!r} is "
                f"{recipe['batch_size']}"
            )
    return suite


def check_config(config: dict) -> None:
    """Raise InputError for a key that is not known and for a value that is not allowed."""
    for key, value in config.items():
        check_choice(key, KEYS, "configuration key")
        if type(value) is not KEYS[key]:
            raise InputError(
                f"configuration {key} is {value!r}: it must be of type {KEYS[key].__name__}"
            )
        if isinstance(value, str) and not set(value).isdisjoint("{}\n\r\0"):
            raise InputError(
                f"configuration {key} is {value!r}: it must be one line, without {{ and }}"
            )
        if type(value) is int and value < MINIMUM.get(key, value):
            raise InputError(f"configuration {key} is {value}: it must be at least {MINIMUM[key]}")
    folder = config.get("data", "data")
    if not folder or (Path(folder).exists() and not Path(folder).is_dir()):
        raise InputError(f"configuration data is {folder!r}: it must be a folder")
    if config.get("per_gpu", 1) > 1 and config.get("gpus_per_run", 1) > 1:
        raise InputError(
            "configuration per_gpu: with gpus_per_run a run takes whole GPUs: set one of them only"
        )
    if config.get("budget_minutes", 0) and config.get("gpus_per_run", 1) > 1:
        raise InputError(
            "configuration gpus_per_run: with budget_minutes a run trains on one GPU: set one only"
        )
