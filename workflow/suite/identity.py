"""What a run is: the configuration and the code that determine its numbers, and their hash."""

import ast
import hashlib
import json
import re
from functools import cache
from pathlib import Path

import baselines
from lowbit_core.quantizers.bits import bits_label

ROOT = Path(__file__).parents[2]
# The folders of lowbit_core whose code can change a number. The others (runtime, datasets) cannot.
NUMERIC = ("quantizers", "kernels", "conversion", "parallel", "models", "training", "data")
DECAY = "weight_decay"  # in `method_groups`: of the network's weights, by their bits
SOURCE_SUFFIXES = (".py", ".cpp", ".h")
# A literal of C++, which may contain // or /*, or a comment.
CPP_LITERAL_OR_COMMENT = re.compile(
    r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\\n])'|//[^\n]*|/\*.*?\*/""", re.DOTALL
)


def resolve(
    config: dict,
    experiment: dict,
    method: str,
    bits: tuple[int, int],
    seed: int,
    recipe: dict,
    pretrained: str | None,
    loads: dict | None = None,
) -> dict:
    """The configuration of one run, with `run_key` (the hash of all of it) and `run_id`.

    config, experiment: of the suite. bits: of weights and activations. recipe: with its name.
    pretrained: the run_id of the full-precision run whose weights it starts from; None for that run
    itself. loads: the run_ids of its `predecessor` and its `teachers`, where options name some.
    """
    resolved = {
        **{key: experiment[key] for key in ("dataset", "arch", "arch_options", "policy")},
        "method": method,
        "w_bits": bits[0],
        "a_bits": bits[1],
        "seed": seed,
        "recipe": _recipe_of_method(recipe, method, bits[0]),
        "pretrained": pretrained,
        **(loads or {}),
        **{key: config[key] for key in ("loader", "compile", "deterministic", "threads")},
        "code_version": code_version(method),
    }
    key = run_key(resolved)
    kind, label = method if pretrained else "checkpoint", bits_label(*bits).lower()
    names = (experiment["dataset"], experiment["arch"], kind, label, f"s{seed}", key[:8])
    return {**resolved, "run_key": key, "run_id": "-".join(names)}


def run_key(run: dict) -> str:
    """The hash of a run's configuration; what names the run, and its role, do not count."""
    resolved = {key: run[key] for key in run.keys() - {"run_key", "run_id", "role"}}
    return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()


def _recipe_of_method(recipe: dict, method: str, w_bits: int) -> dict:
    """The recipe as `method` trains by it at `w_bits`: its `method_groups` are merged into it."""
    changes = recipe["method_groups"].get(method, {})
    groups = recipe["quantizer_groups"].items()
    rest = {key: value for key, value in recipe.items() if key != "method_groups"}
    rest[DECAY] = changes.get(DECAY, {}).get(f"W{w_bits}", rest[DECAY])
    return {**rest, "quantizer_groups": {n: {**g, **changes.get(n, {})} for n, g in groups}}


@cache
def code_version(method: str) -> str:
    """Hash of the code that can change this method's numbers: 12 hex digits.

    That is the numeric folders of lowbit_core, and the method's module with the baselines that it
    imports. Comments, docstrings and layout do not count.
    """
    files = _sources(*(ROOT / "lowbit_core" / folder for folder in NUMERIC))
    if method in baselines.SOURCES:
        _add_module(baselines.SOURCES[method], files)
    return _hash(files)


@cache
def deploy_version() -> str:
    """Hash of the code that exports a run and computes the file: 12 hex digits."""
    return _hash(_sources(ROOT / "deploy"))


@cache
def results_version() -> str:
    """Hash of what makes tables, plots and report of a record: 12 hex digits."""
    files = _sources(ROOT / "workflow" / "results") | {ROOT / "workflow" / "comparisons.py"}
    pages = {*(ROOT / "workflow" / "results" / "templates").glob("[!.]*.*")}
    return _hash(files | pages)


def _sources(*folders: Path) -> set[Path]:
    files = {path for folder in folders for path in folder.rglob("*")}
    return {path for path in files if path.suffix in SOURCE_SUFFIXES}


def _hash(files: set[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(ROOT)}\n{_code(path)}\n".encode())
    return digest.hexdigest()[:12]


def _add_module(module: str, files: set[Path]) -> None:
    """Add to `files` the file of a module of baselines and those of the baselines it imports."""
    path = ROOT / (module.replace(".", "/") + ".py")
    if path in files or not module.startswith("baselines.") or not path.exists():
        return
    files.add(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            package = "baselines." if getattr(node, "level", 0) else ""  # it is one flat package
            source = (package + (getattr(node, "module", None) or "")).strip(".")
            for name in (source, *(f"{source}.{alias.name}".strip(".") for alias in node.names)):
                _add_module(name, files)


@cache
def _code(path: Path) -> str:
    """What is in `path`; of a program without comments, docstrings and layout."""
    text = path.read_text()
    if path.suffix not in SOURCE_SUFFIXES:  # of the report's page
        return text
    if path.suffix != ".py":
        bare = CPP_LITERAL_OR_COMMENT.sub(lambda m: m[0] if m[0][0] in "\"'" else " ", text)
        return "\n".join(line.strip() for line in bare.splitlines() if line.strip())
    return python_code(text)


def python_code(text: str) -> str:
    """What a Python source says, the same text in every version of Python that can parse it.

    `ast.unparse` is not: Python 3.12 writes f-strings with other quotes than 3.11.
    """
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [n for n in body if not _is_text(n)] or [ast.Pass()]  # type: ignore
    return _written(tree)


def _written(part: object) -> str:
    """A syntax tree as text. What is empty is left out: versions of Python differ in that."""
    if isinstance(part, list):
        return f"[{', '.join(map(_written, part))}]"
    if not isinstance(part, ast.AST):
        return repr(part)
    if isinstance(part, ast.JoinedStr):  # Python 3.12 may end one with a text of no character
        part.values = [value for value in part.values if getattr(value, "value", None) != ""]
    fields = [(name, value) for name, value in ast.iter_fields(part) if value not in (None, [])]
    inner = ", ".join(f"{name}={_written(value)}" for name, value in fields)
    return f"{type(part).__name__}({inner})"


def _is_text(node: ast.stmt) -> bool:
    """True for a statement that is only a string: a docstring."""
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)
