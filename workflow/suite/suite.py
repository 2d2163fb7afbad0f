"""Suites: config/suites/<name>.yaml, checked and expanded into runs and jobs."""

import itertools
import json
from collections.abc import Collection, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
    def runs(self) -> list[dict]:
        """The runs of all jobs, each once."""
        return [run for job in self.jobs.values() for run in job.runs]

    @property
    def datasets(self) -> list[str]:
        return sorted({run["dataset"] for run in self.runs})

    def only(self, names: str) -> "Suite":
        """The jobs of the data sets in `names`, separated by commas; all of them if it is empty."""
        chosen = [name.strip() for name in names.split(",") if name.strip()]
        for name in chosen:
            check_choice(name, self.datasets, f"configuration datasets for suite {self.name!r}")
        jobs = {n: j for n, j in self.jobs.items() if j.runs[0]["dataset"] in chosen}
        return replace(self, jobs=jobs) if chosen else self

    @property
    def has_variants(self) -> bool:
        """Whether it runs one method by several recipes: a comparison of variants."""
        ids, settings = set(), set()
        others = dict.fromkeys(("recipe", "run_key", "run_id", "role", "pretrained"))
        for run in (run for run in self.runs if run["pretrained"]):
            ids.add(run["run_id"])
            settings.add(json.dumps(run | others, sort_keys=True))
        return len(settings) < len(ids)

    def jobs_with(self, methods: Container[str]) -> list[str]:
        """Names of the jobs that train a run of one of `methods` (checkpoints left out)."""
        jobs = [job for job in self.jobs.values() if job.needs]
        return [job.name for job in jobs if any(run["method"] in methods for run in job.runs)]


def load_suite(name: str, compile: str = "") -> Suite:
    """Read, check and expand a suite; `compile`, unless empty, replaces the suite's own setting.

    Raises InputError for anything that is wrong in it.
    """
    check_choice(name, sorted(path.stem for path in SUITES.glob("*.yaml")), "suite")
    where = f"config/suites/{name}.yaml"
    suite = parse_suite((SUITES / f"{name}.yaml").read_bytes(), where, compile)
    if suite.name != name:
        raise InputError(f"{where}: suite is {suite.name!r}: it must be the file's name, {name!r}")
    return suite


def parse_suite(text: str | bytes, where: str, compile: str = "") -> Suite:
    """The suite that the YAML `text` describes; `where` names the file in errors."""
    config = read_config(text, where)
    if compile:
        check_choice(compile, COMPILE_MODES, "compile")
        config["compile"] = compile
    with _errors_at(f"{where}: "):
        for name, recipe in config["recipes"].items():
            _check_method_groups(recipe["method_groups"], f"recipes.{name}.method_groups")
        runs = list(_runs(config))
    return Suite(config["suite"], config, _jobs(runs, config["runs_per_job"]))


# -- what the schema cannot check ------------------------------------------------------------


@contextmanager
def _errors_at(place: str) -> Iterator[None]:
    """Begin the InputErrors of the block with the place in the suite."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}{error}") from error


def check_choice(value: str, legal: Collection[str], what: str) -> None:
    """Raise InputError unless the value is legal."""
    if value not in legal:
        raise InputError(f"{what} is {value!r}: it must be one of {', '.join(legal)}")


def _check_method_groups(by_method: dict, place: str) -> None:
    """The methods, and of each the parameter groups, whose settings a recipe changes."""
    for name, groups in by_method.items():
        with _errors_at(f"{place}: "):
            legal = _groups(baselines.method(name))
        for group in sorted(groups.keys() - legal):
            raise InputError(
                f"{place}.{name}: no parameter of this method is in group {group!r}; "
                f"its groups are {', '.join(sorted(legal)) or 'none'}"
            )


def _groups(method: Method) -> set[str]:
    """Optimizer groups of a method's quantizers, besides the network's own weights."""
    kinds = [k.func if isinstance(k, partial) else k for k in (method.weight, method.activation)]
    groups = (set(kind.GROUPS.values()) for kind in kinds if kind)  # type: ignore[union-attr]
    return set().union(*groups) - {"weights"}


def _check_recipes(experiment: dict, recipes: dict, place: str) -> None:
    """The recipes that an experiment names, against its data set."""
    with _errors_at(f"{place}.dataset: "):
        data = dataset(experiment["dataset"])
    for key in ("checkpoint_recipe", "recipe"):
        name = experiment[key]
        check_choice(name, recipes, f"{place}.{key}")
        with _errors_at(f"recipes.{name}.augmentation: "):
            augment.check_augmentation(recipes[name]["augmentation"], data.stored_raw)
        _check_sizes(recipes[name], data, f"recipes.{name}")


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


def _runs(config: dict) -> Iterator[dict]:
    """Every run of the suite with its role, once for each experiment that asks for it."""
    for index, experiment in enumerate(config["experiments"]):
        place = f"experiments[{index}]"
        _check_recipes(experiment, config["recipes"], place)
        options = json.dumps(experiment["arch_options"], sort_keys=True)
        with _errors_at(f"{place}.arch: "):
            model = _skeleton(experiment["arch"], dataset(experiment["dataset"]), options)
        settings = list(_settings(experiment, model, place))
        # What is not quantized is shared by experiments that differ in policy.
        bare = {**experiment, "policy": NO_POLICY}
        for seed in experiment["seeds"]:
            recipe = experiment["checkpoint_recipe"]
            checkpoint = resolve(config, bare, "fp", FLOAT, seed, recipe, None)
            yield {**checkpoint, "role": "checkpoint"}
            recipe, start = experiment["recipe"], checkpoint["run_id"]
            for method, bits, role in settings:
                whose = bare if method.weight is None else experiment
                run = resolve(config, whose, method.name, bits, seed, recipe, start)
                yield {**run, "role": role}


def _settings(
    experiment: dict, model: nn.Module, place: str
) -> Iterator[tuple[Method, tuple[int, int], str]]:
    """Method, bits (of weights, of activations) and role of each run of one seed."""
    parts = [(experiment, "run"), *((part, "ablation") for part in experiment["ablations"])]
    for part, role in parts:
        bits_asked = [parse_bits(label, f"{place}.bits") for label in part["bits"]]
        names = part["methods"]
        if names == "all":
            names = [m.name for m in baselines.METHODS.values() if not m.ablation]
        with _errors_at(f"{place}.methods: "):
            methods = [baselines.method(name) for name in names]
        for method in methods:
            for bits in [FLOAT] if method.weight is None else bits_asked:
                if part["methods"] == "all" and not method.offers(bits[0]):
                    continue
                with _errors_at(f"{place}: "):
                    layer_bits(model, QuantPolicy(method, *bits, **experiment["policy"]))
                yield method, bits, role


def _jobs(runs: list[dict], runs_per_job: int) -> dict[str, Job]:
    """The jobs of runs among which each checkpoint comes before the runs that start from it."""
    # The runs that feed the ablation tables go into jobs of their own, so that
    # `snakemake results/ablation_channel_error.csv` trains little else.
    ablation_methods = {"fp", *load_comparisons().ablation_methods}
    jobs, starts = {}, {}
    members: dict[tuple[str, str], dict[str, dict]] = {}
    for run in runs:
        if run["role"] == "checkpoint":
            base = f"{run['dataset']}-{run['arch']}-s{run['seed']}-{run['run_key'][:8]}"
            starts[run["run_id"]] = base
            jobs[f"{base}-checkpoint"] = Job(f"{base}-checkpoint", (run,), None)
        else:
            family = "ablation" if run["method"] in ablation_methods else "rest"
            unique = members.setdefault((starts[run["pretrained"]], family), {})
            unique.setdefault(run["run_id"], run)
    for base, family in itertools.product(starts.values(), ("ablation", "rest")):
        chosen = tuple(members.get((base, family), {}).values())
        for part, start in enumerate(range(0, len(chosen), runs_per_job)):
            name = f"{base}-{family}{part}"
            jobs[name] = Job(name, chosen[start : start + runs_per_job], f"{base}-checkpoint")
    return jobs
