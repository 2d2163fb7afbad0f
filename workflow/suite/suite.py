"""Suites: config/suites/<name>.yaml, checked and expanded into runs and jobs."""

import json
from collections.abc import Collection, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import nn

import baselines
from lowbit_core import models
from lowbit_core.conversion.policy import QuantPolicy, layer_bits
from lowbit_core.data import augment
from lowbit_core.datasets.catalog import Dataset, dataset
from lowbit_core.quantizers.bits import BITS, FLOAT_BITS, bits_label, parse_bits
from lowbit_core.quantizers.interface import Method
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.run_status import loaded_runs
from workflow.suite.identity import DECAY, ROOT, resolve
from workflow.suite.options import (
    PRETRAINED,
    DoesNotApply,
    Training,
    check_training,
    option_pairs,
    predecessor,
    refuse_for_checkpoint,
    teacher_training,
    teachers,
)
from workflow.suite.packing import Job, pack
from workflow.suite.schema import read_config

SUITES = ROOT / "config" / "suites"
DEFAULT_SUITE = "quick"
COMPILE_MODES = ("auto", "off", "quantizers", "model")
NO_POLICY = {"first_last": "fp", "shortcut": "quantized", "exceptions": {}}
FLOAT = (FLOAT_BITS, FLOAT_BITS)


@dataclass(frozen=True)
class Suite:
    name: str
    config: dict
    jobs: dict[str, Job]
    part_of: "Suite | None" = None

    @property
    def runs(self) -> list[dict]:
        """The runs of all jobs, each once."""
        return [run for job in self.jobs.values() for run in job.runs]

    @property
    def roles(self) -> dict[str, str]:
        return {run["run_id"]: run["role"] for run in self.runs}

    @property
    def datasets(self) -> list[str]:
        return sorted({run["dataset"] for run in self.runs})

    @property
    def starts(self) -> dict[str, list[Job]]:
        """The jobs by the checkpoint that they train or start from, as the jobs' names begin."""
        found: dict[str, list[Job]] = {}
        for name, job in self.jobs.items():
            found.setdefault(name.rpartition("-")[0], []).append(job)
        return found

    def only(self, names: str) -> "Suite":
        """The jobs of the data sets in `names`, separated by commas; all of them if it is empty."""
        chosen = [name.strip() for name in names.split(",")] if names.strip() else []
        for name in chosen:
            check_choice(name, self.datasets, f"data set for suite {self.name!r}")
        jobs = {n: j for n, j in self.jobs.items() if j.runs[0]["dataset"] in chosen}
        return replace(self, jobs=jobs, part_of=self) if chosen else self

    @property
    def has_variants(self) -> bool:
        """Whether it, or the suite of which it is a part, runs one method by several recipes."""
        if self.part_of:
            return self.part_of.has_variants
        ids, settings = set(), set()
        others = dict.fromkeys(("recipe", "run_key", "run_id", "role", "pretrained"))
        for run in (run for run in self.runs if run["role"] not in ("checkpoint", "option")):
            ids.add(run["run_id"])
            settings.add(json.dumps(run | others, sort_keys=True))
        return len(settings) < len(ids)

    @property
    def hides_test(self) -> bool:
        return hides_test(self.config, self.has_variants)

    @property
    def has_options(self) -> bool:
        """Whether it trains a run without and with an option of its recipe."""
        return bool(option_pairs(self.runs))

    def jobs_with(self, methods: Container[str]) -> list[str]:
        """Names of the jobs that train a run of one of `methods` (checkpoints and options not)."""
        found = {
            (job.name, run["role"]) for job, run in self._of_jobs() if run["method"] in methods
        }
        return [name for name in self.jobs if {(name, "run"), (name, "ablation")} & found]

    def loaded_by(self, job: Job) -> list[dict]:
        """The runs of other jobs whose weights the runs of `job` load."""
        names = {name for run in job.runs for name in loaded_runs(run)}
        return [run for other, run in self._of_jobs() if run["run_id"] in names and other != job]

    def _of_jobs(self) -> Iterator[tuple[Job, dict]]:
        return ((job, run) for job in self.jobs.values() for run in job.runs)


def hides_test(config: dict, has_variants: bool) -> bool:
    """Whether a suite chooses between recipes on validation images, so test images are not seen.

    config: the suite's file, or that of a record, which may be older than the key.
    """
    return has_variants and config.get("compare_on", "validation") == "validation"


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
        suite = Suite(config["suite"], config, pack(runs, config["runs_per_job"]))
        if config["deploy"] and suite.has_variants:
            raise InputError(
                "deploy is true: it must be false in a suite that compares recipes, since such a "
                "suite makes no table of exported files"
            )
        if config["compare_on"] == "test" and not suite.has_variants:
            raise InputError(
                "compare_on is 'test': it must be left out in a suite that compares no recipes, "
                "since the tables of such a suite show test images anyway"
            )
        _check_cells(suite)
    return suite


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


def _check_cells(suite: Suite) -> None:
    """A cell of a table and a seed have one run; where recipes are compared, each has its cells.

    A run that is trained for several bit-widths takes a cell at each of them.
    """
    cells: dict[tuple, str] = {}
    for run in suite.runs:
        if run["role"] == "checkpoint" or (run["role"] == "option" and not suite.has_variants):
            continue
        recipe = run["recipe"]["name"] if suite.has_variants else ""
        lower = run["recipe"].get("widths", {}).get("lower", ())
        for label in (bits_label(run["w_bits"], run["a_bits"]), *lower):
            place = *(run[key] for key in ("dataset", "arch", "method", "seed")), label, recipe
            other = cells.setdefault(place, run["run_id"])
            if other != run["run_id"]:
                raise InputError(
                    f"experiments: runs {other} and {run['run_id']} have the same network, method, "
                    f"seed and bits ({label}){recipe and f' and recipe ({recipe})'}: a table takes "
                    "one, so give one of them another suite"
                )


def _check_method_groups(by_method: dict, place: str) -> None:
    """The methods, and of each the parameter groups, whose settings a recipe changes."""
    for name, groups in by_method.items():
        with _errors_at(f"{place}: "):
            legal = _groups(baselines.method(name))
        for group in sorted(groups.keys() - legal - {DECAY}):
            raise InputError(
                f"{place}.{name}: no parameter of this method is in group {group!r}; "
                f"its groups are {', '.join(sorted(legal)) or 'none'}"
            )


def _groups(method: Method) -> set[str]:
    """Optimizer groups of a method's quantizers, besides the network's own weights."""
    kinds = {kind for bits in BITS if method.offers(bits) for kind in method.kinds(bits, bits)}
    return {group for kind in kinds for group in kind.GROUPS.values()} - {"weights"}


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
    refuse_for_checkpoint(recipes[experiment["checkpoint_recipe"]], f"{place}.checkpoint_recipe")


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
    """Every run of the suite with its role, after the runs that it loads; some more than once."""
    for index, experiment in enumerate(config["experiments"]):
        place = f"experiments[{index}]"
        _check_recipes(experiment, config["recipes"], place)
        options = json.dumps(experiment["arch_options"], sort_keys=True)
        with _errors_at(f"{place}.arch: "):
            model = _skeleton(experiment["arch"], dataset(experiment["dataset"]), options)
        trainings = list(_trainings(experiment, config["recipes"], model, place))
        offered: dict[str, set[tuple[int, int]]] = {}
        applied: set[str] = set()
        for training in trainings:
            offered.setdefault(training.method.name, set()).add(training.bits)
        for seed in experiment["seeds"]:
            expansion = _Expansion(config, experiment, seed, model, offered, place)
            yield expansion.checkpoint()
            for training in trainings:
                try:
                    yield from list(expansion.runs(training))
                    applied.add(str(training.added))
                except DoesNotApply:
                    if not training.of_all:
                        raise
        for training in trainings:
            if str(training.added) not in applied:
                raise InputError(
                    f"{place}.ablations: option {training.added} fits none of the methods and bits "
                    "for which it is asked"
                )


def _trainings(experiment: dict, recipes: dict, model: nn.Module, place: str) -> Iterator[Training]:
    """What one seed trains: the experiment's own runs, then the parts of its ablations."""
    base = {**recipes[experiment["recipe"]], "name": experiment["recipe"]}
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
                of_all = part["methods"] == "all"
                if of_all and not method.offers(bits[0]):
                    continue
                with _errors_at(f"{place}: "):
                    layer_bits(model, QuantPolicy(method, *bits, **experiment["policy"]))
                yield Training(method, bits, role, base, {}, of_all)
                for added in part.get("options", ()):
                    yield Training(method, bits, "option", base, added, of_all)


@dataclass(frozen=True)
class _Expansion:
    """The runs of one experiment with one seed."""

    config: dict
    experiment: dict
    seed: int
    model: nn.Module
    offered: dict[str, set[tuple[int, int]]]
    """By method, the bits at which the experiment trains it."""
    place: str

    def checkpoint(self, arch: str = "", arch_options: dict | None = None) -> dict:
        """The full-precision run from which the others start; or that of another network."""
        network = {"arch": arch, "arch_options": arch_options} if arch else {}
        recipe = self.experiment["checkpoint_recipe"]
        recipe = {**self.config["recipes"][recipe], "name": recipe}
        whose = self._bare | network
        run = resolve(self.config, whose, "fp", FLOAT, self.seed, recipe, None)
        return {**run, "role": "checkpoint"}

    @property
    def _bare(self) -> dict:
        # What is not quantized is shared by experiments that differ in policy.
        return {**self.experiment, "policy": NO_POLICY}

    def runs(self, training: Training) -> Iterator[dict]:
        """The run of a training, after the runs that it loads and that are not its checkpoint."""
        place, loads = f"{self.place}.ablations.options", {}
        if not training.added:
            place = f"recipes.{training.base['name']}"
        layers = layer_bits(
            self.model, QuantPolicy(training.method, *training.bits, **self.experiment["policy"])
        )
        check_training(training, [w_bits for w_bits, _, _ in layers.values()], place)
        earlier = predecessor(training, self.offered[training.method.name], place)
        if earlier is not None:
            *before, run = self.runs(self._checked(earlier, f"{place}.start_from"))
            yield from (*before, run)
            loads["predecessor"] = run["run_id"]
        for teacher in teachers(training.recipe):
            *before, run = self._teacher(training, teacher, place)
            yield from (*before, run)
            loads.setdefault("teachers", []).append(run["run_id"])
        whose = self._bare if training.method.weight is None else self.experiment
        start, name = self.checkpoint()["run_id"], training.method.name
        yield {
            **resolve(
                self.config, whose, name, training.bits, self.seed, training.recipe, start, loads
            ),
            "role": training.role,
        }

    def _teacher(self, training: Training, teacher: str | dict, place: str) -> Iterator[dict]:
        where = f"{place}.distill.teacher"
        if teacher == PRETRAINED:
            yield self.checkpoint()
        elif isinstance(teacher, dict):
            options = json.dumps(teacher["arch_options"], sort_keys=True)
            with _errors_at(f"{where}: "):
                _skeleton(teacher["arch"], dataset(self.experiment["dataset"]), options)
            yield self.checkpoint(**teacher)
        else:
            other = teacher_training(training, teacher, place)
            yield from self.runs(self._checked(other, where))

    def _checked(self, training: Training, place: str) -> Training:
        """The training, whose method must offer its bits."""
        try:
            policy = QuantPolicy(training.method, *training.bits, **self.experiment["policy"])
            layer_bits(self.model, policy)
        except InputError as error:
            raise DoesNotApply(f"{place}: {error}") from error
        return training
