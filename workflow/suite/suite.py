"""Suites: config/suites/<name>.yaml, validated and expanded into runs and jobs."""

import argparse
import ast
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import jsonschema
import yaml
from jsonschema.protocols import Validator

import baselines
from lowbit_core import models
from lowbit_core.conversion.policy import QuantPolicy, layer_bits
from lowbit_core.data import augment
from lowbit_core.datasets.catalog import dataset
from lowbit_core.quantizers.bits import FLOAT_BITS, bits_label, parse_bits
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import write_json
from workflow.comparisons import load_comparisons

ROOT = Path(__file__).parents[2]
SUITES = ROOT / "config" / "suites"
SCHEMA = Path(__file__).with_name("suite.schema.yaml")
DEFAULT_SUITE = "quick"
COMPILE_MODES = ("auto", "off", "quantizers", "model")
NO_POLICY = {"first_last": "fp", "shortcut": "quantized", "exceptions": {}}
# The folders of lowbit_core whose code can change a number: they are part of a run's identity.
NUMERIC = ("quantizers", "kernels", "conversion", "parallel", "models", "training", "data")


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
        """Whether it runs one method several times, by several recipes: a comparison of variants."""
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
    """Read, validate and expand a suite; `compile`, unless empty, replaces the suite's own setting.

    Raises InputError for anything that is wrong in it.
    """
    known = sorted(path.stem for path in SUITES.glob("*.yaml"))
    if name not in known:
        raise InputError(f"unknown suite {name!r}: it must be one of {', '.join(known)}")
    where = f"config/suites/{name}.yaml"
    try:
        text = (SUITES / f"{name}.yaml").read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text: {error}") from error
    suite = parse_suite(text, where, compile)
    if suite.name != name:
        raise InputError(f"{where}: suite is {suite.name!r}: it must be the file's name, {name!r}")
    return suite


def parse_suite(text: str, where: str, compile: str = "") -> Suite:
    """The suite that the YAML `text` describes; `where` names the file in errors."""
    try:
        config = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date or number
        raise InputError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    _validate(config, where)
    if compile:
        if compile not in COMPILE_MODES:
            raise InputError(
                f"compile is {compile!r}: it must be one of {', '.join(COMPILE_MODES)}, or empty"
            )
        config["compile"] = compile
    _check_method_groups(config, where)
    runs = list(_runs(config, where))
    return Suite(config["suite"], config, _jobs(runs, config["runs_per_job"]))


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping: YAML would keep the last in silence."""

    def construct_mapping(self, node, deep=False):
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, _ in node.value:
                if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} stands twice", key.start_mark
                    )
                if isinstance(key.value, str):
                    seen.add(key.value)
        return super().construct_mapping(node, deep)


# -- validation ------------------------------------------------------------------------------


@cache
def _validator() -> Validator:
    schema = yaml.safe_load(SCHEMA.read_text())
    base = jsonschema.Draft202012Validator

    def fill_defaults(validator, properties, instance, schema):
        if isinstance(instance, dict):
            for key, part in properties.items():
                if "default" in part:
                    instance.setdefault(key, json.loads(json.dumps(part["default"])))
        yield from base.VALIDATORS["properties"](validator, properties, instance, schema)

    # 2.0 is an integer and NaN a number to JSON schema; neither is to torch.
    types = base.TYPE_CHECKER.redefine("integer", lambda _, v: type(v) is int).redefine(
        "number", lambda _, v: type(v) is int or (type(v) is float and math.isfinite(v))
    )
    return jsonschema.validators.extend(base, {"properties": fill_defaults}, type_checker=types)(
        schema
    )


def _validate(config: object, where: str) -> None:
    if isinstance(config, dict) and config.get("compile") is False:
        config["compile"] = "off"
    errors = sorted(_validator().iter_errors(config), key=lambda e: list(map(str, e.absolute_path)))
    if not errors:
        return
    error = jsonschema.exceptions.best_match(errors)
    place = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path
    ).lstrip(".")
    raise InputError(f"{where}: {place or 'the file'}: {error.message}{_allowed(error)}")


def _allowed(error: jsonschema.ValidationError) -> str:
    if error.validator == "additionalProperties":
        return f"; the keys allowed here are {', '.join(sorted(error.schema['properties']))}"
    if error.validator == "type":
        return f" ({error.validator_value})"
    return ""


def _check_method_groups(config: dict, where: str) -> None:
    """Methods and groups that the schema cannot know."""
    for name, recipe in config["recipes"].items():
        place = f"{where}: recipes.{name}.method_groups"
        for method, groups in recipe["method_groups"].items():
            try:
                legal = sorted(_groups(method))
            except InputError as error:
                raise InputError(f"{place}: {error}") from error
            for group in groups:
                if group not in legal:
                    raise InputError(
                        f"{place}.{method}: no parameter of this method is in group {group!r}; "
                        f"its groups are {', '.join(legal) or 'none'}"
                    )


def _groups(name: str) -> set[str]:
    """Optimizer groups of a method's quantizers, beside the network's own weights."""
    method = baselines.method(name)
    kinds = [k.func if isinstance(k, partial) else k for k in (method.weight, method.activation)]
    return {group for kind in kinds if kind for group in kind.GROUPS.values()} - {"weights"}


def _check_names(experiment: dict, config: dict, place: str) -> None:
    """Names that the schema cannot know."""
    try:
        dataset(experiment["dataset"])
    except InputError as error:
        raise InputError(f"{place}.dataset: {error}") from error
    for key in ("checkpoint_recipe", "recipe"):
        if experiment[key] not in config["recipes"]:
            raise InputError(
                f"{place}.{key}: unknown recipe {experiment[key]!r}: it must be one of "
                f"{', '.join(config['recipes'])}"
            )
    legal = dataset(experiment["dataset"])
    for key in ("checkpoint_recipe", "recipe"):
        recipe = config["recipes"][experiment[key]]
        try:
            augment.check_augmentation(recipe["augmentation"], legal.stored_raw)
        except InputError as error:
            raise InputError(
                f"{place.partition(':')[0]}: recipes.{experiment[key]}.augmentation: {error}"
            ) from error


# -- expansion -------------------------------------------------------------------------------


def _runs(config: dict, where: str) -> Iterator[dict]:
    for index, experiment in enumerate(config["experiments"]):
        place = f"{where}: experiments[{index}]"
        _check_names(experiment, config, place)
        model = _check_model(experiment, place)
        settings = [(experiment["methods"], experiment["bits"], "run")]
        settings += [(a["methods"], a["bits"], "ablation") for a in experiment["ablations"]]
        for seed in experiment["seeds"]:
            recipe = experiment["checkpoint_recipe"]
            # What is not quantized is shared by experiments that differ in policy.
            bare = {**experiment, "policy": NO_POLICY}
            checkpoint = _resolve(config, bare, "fp", (32, 32), seed, recipe, None)
            yield {**checkpoint, "role": "checkpoint"}
            for names, labels, role in settings:
                for name, bits in _combinations(names, labels, place):
                    _check_plan(model, name, bits, experiment["policy"], place)
                    run = _resolve(
                        config,
                        bare if baselines.method(name).weight is None else experiment,
                        name,
                        bits,
                        seed,
                        experiment["recipe"],
                        checkpoint["run_id"],
                    )
                    yield {**run, "role": role}


def _combinations(names, labels, place) -> Iterator[tuple[str, tuple[int, int]]]:
    if names == "all":
        names = [m.name for m in baselines.METHODS.values() if not m.ablation]
    for name in names:
        try:
            quantizes = baselines.method(name).weight is not None
        except InputError as error:
            raise InputError(f"{place}.methods: {error}") from error
        if not quantizes:
            yield name, (FLOAT_BITS, FLOAT_BITS)
            continue
        for label in labels:
            yield name, parse_bits(label, f"{place}.bits")


def _check_model(experiment: dict, place: str):
    info = dataset(experiment["dataset"])
    try:
        return _skeleton(
            experiment["arch"],
            info.classes,
            info.channels,
            json.dumps(experiment["arch_options"], sort_keys=True),
        )
    except InputError as error:
        raise InputError(f"{place}.arch: {error}") from error


@cache
def _skeleton(arch: str, classes: int, channels: int, options: str):
    import torch  # heavy: only where a model is needed

    with torch.device("meta"):
        return models.build(arch, classes, channels, **json.loads(options))


def _check_plan(model, name: str, bits: tuple[int, int], policy: dict, place: str) -> None:
    try:
        layer_bits(model, QuantPolicy(baselines.method(name), *bits, **policy))
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _resolve(config, experiment, name, bits, seed, recipe, pretrained) -> dict:
    """One run's configuration with its identity: what determines the run, and its hash."""
    resolved = {
        "dataset": experiment["dataset"],
        "arch": experiment["arch"],
        "arch_options": experiment["arch_options"],
        "method": name,
        "w_bits": bits[0],
        "a_bits": bits[1],
        "seed": seed,
        "policy": experiment["policy"],
        "recipe": {"name": recipe, **_recipe_of(config["recipes"][recipe], name)},
        "pretrained": pretrained,
        "loader": config["loader"],
        "compile": config["compile"],
        "deterministic": config["deterministic"],
        "threads": config["threads"],
        "code_version": code_version(name),
    }
    key = hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()
    kind = name if pretrained else "checkpoint"
    run_id = "-".join(
        [
            resolved["dataset"],
            resolved["arch"],
            kind,
            bits_label(*bits).lower(),
            f"s{seed}",
            key[:8],
        ]
    )
    return {**resolved, "run_key": key, "run_id": run_id}


def _recipe_of(recipe: dict, method: str) -> dict:
    """The recipe as this method trains by it: its own settings are those of the groups."""
    own = recipe["method_groups"].get(method, {})
    groups = recipe["quantizer_groups"].items()
    rest = {key: value for key, value in recipe.items() if key != "method_groups"}
    return {**rest, "quantizer_groups": {n: {**group, **own.get(n, {})} for n, group in groups}}


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


# -- code version ----------------------------------------------------------------------------


@cache
def code_version(method: str) -> str:
    """Hash of the code that can change this method's numbers: 12 hex digits.

    The numeric modules of lowbit_core and the method's module with the baselines it imports;
    comments and docstrings do not count.
    """
    core = ROOT / "lowbit_core"
    found = [path for folder in NUMERIC for path in (core / folder).rglob("*")]
    files = [path for path in found if path.suffix in (".py", ".cpp", ".h")]
    if method in baselines.SOURCES:
        files += _with_imports(baselines.SOURCES[method])
    digest = hashlib.sha256()
    for path in sorted(set(files)):
        digest.update(f"{path.relative_to(ROOT)}\n{_code(path)}\n".encode())
    return digest.hexdigest()[:12]


def _with_imports(module: str) -> list[Path]:
    """The file of a module of baselines and those of the baselines it imports."""
    path = ROOT / (module.replace(".", "/") + ".py")
    found = [path]
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("baselines.") and (ROOT / f"{name.replace('.', '/')}.py").exists():
                found += _with_imports(name)
    return found


@cache
def _code(path: Path) -> str:
    """Source; of Python without comments and docstrings."""
    if path.suffix != ".py":
        return path.read_text()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [n for n in body if not _is_text(n)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


# -- the sweep's own configuration -----------------------------------------------------------

CONFIG_KEYS = {
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

LEAST = {"budget_minutes": 0, "per_gpu": 1, "gpus_per_run": 1}


def check_config(config: dict) -> None:
    """config/config.yaml with `--config` overrides: raises InputError for a key or type not known."""
    for key, value in config.items():
        if key not in CONFIG_KEYS:
            raise InputError(
                f"configuration key {key!r} is not known: the keys are {', '.join(CONFIG_KEYS)}"
            )
        if not isinstance(value, CONFIG_KEYS[key]):
            raise InputError(
                f"configuration {key} is {value!r}: it must be a {CONFIG_KEYS[key].__name__}"
            )
        if isinstance(value, str) and not set(value).isdisjoint("{}\n\r\0"):
            raise InputError(
                f"configuration {key} is {value!r}: it must be one line, without {{ and }}"
            )
        if key in LEAST and value < LEAST[key]:
            raise InputError(f"configuration {key} is {value}: it must be at least {LEAST[key]}")
    if config.get("budget_minutes", 0) and config.get("gpus_per_run", 1) > 1:
        raise InputError(
            "configuration gpus_per_run: with budget_minutes a run trains on one GPU: set one of them"
        )


def main() -> None:
    """Write a suite as expanded: `python -m workflow.suite.suite NAME --out FILE`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("suite")
    parser.add_argument("--compile", choices=COMPILE_MODES, default="")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    suite = load_suite(arguments.suite, arguments.compile)
    runs = [run for job in suite.jobs.values() for run in job.runs]
    write_json(arguments.out, {"suite": suite.config, "runs": runs})


if __name__ == "__main__":
    run_cli(main)
