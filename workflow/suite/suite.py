"""Suites: config/suites/<name>.yaml, checked and expanded into runs and jobs."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

import baselines
from lowbit_core import models
from lowbit_core.conversion.policy import QuantPolicy, layer_bits
from lowbit_core.data import augment
from lowbit_core.datasets.catalog import Dataset, dataset
from lowbit_core.quantizers.bits import FLOAT_BITS, parse_bits
from lowbit_core.quantizers.interface import Method
from lowbit_core.runtime.errors import InputError
from workflow.comparisons import load_comparisons
from workflow.suite.identity import resolve
from workflow.suite.schema import read_config

ROOT = Path(__file__).parents[2]
SUITES = ROOT / "config" / "suites"
DEFAULT_SUITE = "quick"
COMPILE_MODES = ("auto", "off", "quantizers", "model")
NO_POLICY = {"first_last": "fp", "shortcut": "quantized", "exceptions": {}}
FLOAT = (FLOAT_BITS, FLOAT_BITS)


@dataclass(frozen=True)
class Job:
    """Runs that one process trains, all from the same checkpoint."""

    name: str
    runs: tuple[dict, ...]
    """Resolved run configurations, each with its `role`."""
    needs: str | None
    """The job that trains the checkpoint."""

    @property
    def keys(self) -> list[str]:
        return [run["run_key"] for run in self.runs]


@dataclass(frozen=True)
class Suite:
    name: str
    config: dict
    jobs: dict[str, Job]

    @property
    def datasets(self) -> list[str]:
        return sorted({run["dataset"] for job in self.jobs.values() for run in job.runs})

    def only(self, names: str) -> "Suite":
        """The jobs of the data sets in `names`, separated by commas; all of them if it is empty."""
        chosen = [name.strip() for name in names.split(",") if name.strip()]
        for name in chosen:
            if name not in self.datasets:
                legal = ", ".join(self.datasets)
                raise InputError(
                    f"configuration datasets names {name!r}: suite {self.name!r} has {legal}"
                )
        jobs = {n: j for n, j in self.jobs.items() if j.runs[0]["dataset"] in chosen}
        return Suite(self.name, self.config, jobs) if chosen else self

    @property
    def has_variants(self) -> bool:
        """Whether it runs one method by several recipes: a comparison of variants."""
        runs = {r["run_id"]: r for job in self.jobs.values() for r in job.runs if r["pretrained"]}
        others = ("recipe", "run_key", "run_id", "role", "pretrained")
        settings = {
            json.dumps({k: v for k, v in run.items() if k not in others}, sort_keys=True)
            for run in runs.values()
        }
        return len(settings) < len(runs)

    def jobs_with(self, methods: tuple[str, ...]) -> list[str]:
        """Names of the jobs that train a run of one of `methods` (checkpoints left out)."""
        return [
            name
            for name, job in self.jobs.items()
            if any(r["method"] in methods and r["role"] != "checkpoint" for r in job.runs)
        ]


def load_suite(name: str, compile: str = "") -> Suite:
    """Read, check and expand a suite; `compile`, unless empty, replaces the suite's own setting.

    Raises InputError for anything that is wrong in it.
    """
    known = sorted(path.stem for path in SUITES.glob("*.yaml"))
    if name not in known:
        raise InputError(f"unknown suite {name!r}: it must be one of {', '.join(known)}")
    where = f"config/suites/{name}.yaml"
    suite = parse_suite((SUITES / f"{name}.yaml").read_bytes(), where, compile)
    if suite.name != name:
        raise InputError(f"{where}: suite is {suite.name!r}: it must be the file's name, {name!r}")
    return suite


def parse_suite(text: str | bytes, where: str, compile: str = "") -> Suite:
    """The suite that the YAML `text` describes; `where` names the file in errors."""
    config = read_config(text, where)
    if compile:
        if compile not in COMPILE_MODES:
            raise InputError(
                f"compile is {compile!r}: it must be one of {', '.join(COMPILE_MODES)}, or empty"
            )
        config["compile"] = compile
    _check_method_groups(config, where)
    runs = list(_runs(config, where))
    return Suite(config["suite"], config, _jobs(runs, config["runs_per_job"]))


# -- what the schema cannot check ------------------------------------------------------------


@contextmanager
def _error_at(place: str) -> Iterator[None]:
    """Name the place in the suite in the InputErrors of the block."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _check_method_groups(config: dict, where: str) -> None:
    """The methods and parameter groups that the recipes' `method_groups` name."""
    for name, recipe in config["recipes"].items():
        place = f"{where}: recipes.{name}.method_groups"
        for method, groups in recipe["method_groups"].items():
            with _error_at(place):
                legal = _groups(baselines.method(method))
            for group in sorted(groups.keys() - legal):
                raise InputError(
                    f"{place}.{method}: no parameter of this method is in group {group!r}; "
                    f"its groups are {', '.join(sorted(legal)) or 'none'}"
                )


def _groups(method: Method) -> set[str]:
    """Optimizer groups of a method's quantizers, besides the network's own weights."""
    kinds = [k.func if isinstance(k, partial) else k for k in (method.weight, method.activation)]
    groups = (set(kind.GROUPS.values()) for kind in kinds if kind)  # type: ignore[union-attr]
    return set().union(*groups) - {"weights"}


def _check_recipes(experiment: dict, recipes: dict, where: str, place: str) -> None:
    """The recipes that an experiment names, against its data set."""
    with _error_at(f"{place}.dataset"):
        data = dataset(experiment["dataset"])
    for key in ("checkpoint_recipe", "recipe"):
        name = experiment[key]
        if name not in recipes:
            legal = ", ".join(recipes)
            raise InputError(f"{place}.{key}: unknown recipe {name!r}: it must be one of {legal}")
        with _error_at(f"{where}: recipes.{name}.augmentation"):
            augment.check_augmentation(recipes[name]["augmentation"], data.stored_raw)
        _check_sizes(recipes[name], data, f"{where}: recipes.{name}")


def _check_sizes(recipe: dict, data: Dataset, place: str) -> None:
    """The numbers of images that a recipe asks of a data set."""
    val, batch = recipe["val_images"], recipe["batch_size"]
    rest = data.train_images - val
    used = rest if recipe["train_images"] is None else recipe["train_images"]
    for key, value, most, why in (
        ("val_images", val, data.train_images - 1, "one of them must be left to train on"),
        ("train_images", used, rest, f"val_images takes {val} of them"),
        ("batch_size", batch, used, f"the recipe trains on {used} of them"),
    ):
        if value > most:
            raise InputError(
                f"{place}.{key} is {value}: it must be at most {most}, since {data.name} has "
                f"{data.train_images} training images and {why}"
            )


@cache
def _skeleton(arch: str, data: Dataset, options: str) -> nn.Module:
    """The network on the device `meta`, without memory; `options` is the JSON of its arch_options.

    Raises InputError for options that it does not take, and where the images are too small for it.
    """
    with torch.device("meta"):
        model = models.build(arch, data.classes, data.channels, **json.loads(options))
        try:
            model.eval()(torch.zeros(1, data.channels, data.side, data.side))
        except RuntimeError as error:
            raise InputError(
                f"{arch!r} with options {options} cannot take the images of {data.name}, "
                f"{data.side} pixels a side: {str(error).splitlines()[0]}"
            ) from error
    return model


# -- expansion -------------------------------------------------------------------------------


def _runs(config: dict, where: str) -> Iterator[dict]:
    """Every run of the suite with its role, once for each experiment that asks for it."""
    for index, experiment in enumerate(config["experiments"]):
        place = f"{where}: experiments[{index}]"
        _check_recipes(experiment, config["recipes"], where, place)
        options = json.dumps(experiment["arch_options"], sort_keys=True)
        with _error_at(f"{place}.arch"):
            model = _skeleton(experiment["arch"], dataset(experiment["dataset"]), options)
        settings = list(_settings(experiment, model, place))
        # What is not quantized is shared by experiments that differ in policy.
        bare = {**experiment, "policy": NO_POLICY}
        for seed in experiment["seeds"]:
            recipe = experiment["checkpoint_recipe"]
            checkpoint = resolve(config, bare, "fp", FLOAT, seed, recipe, None)
            yield {**checkpoint, "role": "checkpoint"}
            for method, bits, role in settings:
                whose = bare if method.weight is None else experiment
                recipe, start = experiment["recipe"], checkpoint["run_id"]
                run = resolve(config, whose, method.name, bits, seed, recipe, start)
                yield {**run, "role": role}


def _settings(
    experiment: dict, model: nn.Module, place: str
) -> Iterator[tuple[Method, tuple[int, int], str]]:
    """Method, bits (of weights, of activations) and role of each run of one seed."""
    parts = [(experiment, "run"), *((part, "ablation") for part in experiment["ablations"])]
    for part, role in parts:
        names = part["methods"]
        if names == "all":
            names = [m.name for m in baselines.METHODS.values() if not m.ablation]
        bits_asked = [parse_bits(label, f"{place}.bits") for label in part["bits"]]
        for name in names:
            with _error_at(f"{place}.methods"):
                method = baselines.method(name)
            for bits in [FLOAT] if method.weight is None else bits_asked:
                with _error_at(place):
                    layer_bits(model, QuantPolicy(method, *bits, **experiment["policy"]))
                yield method, bits, role


def _jobs(runs: list[dict], runs_per_job: int) -> dict[str, Job]:
    # The runs that feed the ablation tables go into jobs of their own, so that
    # `snakemake results/ablation_channel_error.csv` trains little else.
    ablation_methods = {"fp", *load_comparisons().ablation_methods}
    by_checkpoint: dict[str, list[dict]] = {}
    jobs: dict[str, Job] = {}
    names: dict[str, str] = {}
    for run in runs:
        if run["role"] == "checkpoint":
            base = f"{run['dataset']}-{run['arch']}-s{run['seed']}-{run['run_key'][:8]}"
            names[run["run_id"]] = base
            jobs[f"{base}-checkpoint"] = Job(f"{base}-checkpoint", (run,), None)
        else:
            by_checkpoint.setdefault(run["pretrained"], []).append(run)
    for checkpoint, members in by_checkpoint.items():
        unique = {run["run_id"]: run for run in reversed(members)}
        for family in ("ablation", "rest"):
            own = [
                r
                for r in reversed(unique.values())
                if (r["method"] in ablation_methods) == (family == "ablation")
            ]
            for part, start in enumerate(range(0, len(own), runs_per_job)):
                name = f"{names[checkpoint]}-{family}{part}"
                chunk = tuple(own[start : start + runs_per_job])
                jobs[name] = Job(name, chunk, f"{names[checkpoint]}-checkpoint")
    return jobs
