"""The rules of the code that CONTRIBUTING.md lists: imports, sizes, what each package needs."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = (".py", ".cpp", ".h", ".smk")
MOST_FILES, MOST_LINES, MOST_FUNCTION_LINES = 12, 400, 60

# What each folder may import: itself, the folders named here, and what those may import.
USES = {
    "benchmarks": ("workflow", "deploy"),
    "deploy": ("baselines",),
    "workflow": ("baselines",),
    "baselines": ("lowbit_core.training",),
    "lowbit_core.training": ("lowbit_core.data", "lowbit_core.models"),
    "lowbit_core.data": ("lowbit_core.datasets", "lowbit_core.parallel"),
    "lowbit_core.models": ("lowbit_core.conversion",),
    "lowbit_core.conversion": ("lowbit_core.quantizers",),
    "lowbit_core.quantizers": ("lowbit_core.kernels", "lowbit_core.parallel"),
    "lowbit_core.kernels": ("lowbit_core.runtime",),
    "lowbit_core.parallel": ("lowbit_core.runtime",),
    "lowbit_core.datasets": ("lowbit_core.runtime",),
    "lowbit_core.runtime": (),
}
PACKAGES = tuple(name for name in USES if "." not in name) + ("lowbit_core",)

HEAVY = ("snakemake", "mlflow", "ffcv", "pandas", "seaborn")
# Imported only after lowbit_core.runtime.backend found FFCV.
NEED_FFCV = ("lowbit_core.data.ffcv_reader",)
IMPORT_ALL = f"""
import importlib, pkgutil, sys
sys.modules |= dict.fromkeys({HEAVY!r})  # None: an import of it fails
for name in ("lowbit_core", "baselines"):
    package = importlib.import_module(name)
    for found in pkgutil.walk_packages(package.__path__, name + "."):
        if found.name not in {NEED_FFCV!r}:
            importlib.import_module(found.name)
"""


def files(*suffixes: str) -> list[Path]:
    paths = [p for name in PACKAGES for p in (ROOT / name).rglob("*") if p.suffix in suffixes]
    return sorted(p for p in paths if "__pycache__" not in p.parts)


def show(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def modules() -> dict[str, ast.Module]:
    """{module: its source as a tree}."""
    found = {}
    for path in files(".py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """The project's modules that a module imports, also inside functions."""
    names = set()
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relative to itself"
            # a module of the package, or a name of the module
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (members & modules().keys()) or {node.module}
    return frozenset((names & modules().keys()) - {module})


def folder_of(module: str) -> str:
    """The folder that has a layer: of lowbit_core its own folders, of the rest the package."""
    depth = 2 if module.startswith("lowbit_core.") else 1
    return ".".join(module.split(".")[:depth])


def test_no_module_imports_itself_through_others():
    done: set[str] = set()

    def follow(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(imports(module)):
                follow(other, (*path, module))
            done.add(module)

    for module in modules():
        follow(module, ())


def test_imports_run_one_way():
    def below(folder: str) -> set[str]:
        return {folder}.union(*map(below, USES[folder]))

    wrong = [
        f"{module} -> {other}"
        for module in modules().keys() - {"lowbit_core"}
        for other in imports(module)
        if folder_of(other) not in below(folder_of(module))
    ]
    assert not wrong


def test_no_folder_holds_more_than_twelve_files():
    code = [path for path in files(*CODE) if path.name != "__init__.py"]
    counts = {
        show(folder): sum(p.parent == folder for p in code) for folder in {p.parent for p in code}
    }
    del counts["baselines"]  # one file a method
    assert {name: count for name, count in counts.items() if count > MOST_FILES} == {}


def test_no_module_is_longer_than_400_lines():
    lengths = {show(path): len(path.read_text().splitlines()) for path in files(".py", ".smk")}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_no_function_is_longer_than_60_lines():
    long = [
        f"{module}.{node.name}: {length}"
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and (length := node.end_lineno - node.lineno + 1) > MOST_FUNCTION_LINES
    ]
    assert not long


def test_the_core_imports_nothing_that_a_bare_gpu_machine_lacks():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
