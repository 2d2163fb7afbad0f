"""What determines a run's identity: its configuration and the code that can change its numbers."""

import copy
import hashlib
import re
import shutil
from dataclasses import replace

import pytest
from example_suite import BASE, E0, TUNE, changed, identity, keys, runs

import baselines
from lowbit_core.runtime.errors import InputError
from workflow.suite import identity as identities
from workflow.suite.identity import NUMERIC, ROOT, code_version
from workflow.suite.suite import load_suite


def test_keys_repeat_and_are_unique():
    assert keys(BASE) == keys(copy.deepcopy(BASE))
    found = [run["run_key"] for run in runs(BASE).values()]
    assert len(set(found)) == len(found)


def test_editing_one_recipe_changes_its_own_runs_alone():
    before = runs(BASE).values()
    for recipe in BASE["recipes"]:
        after = keys(changed(("recipes", recipe, "weight_decay"), 0.123))
        for run in before:
            uses = {run["recipe"]["name"]}
            if run["pretrained"]:
                uses.add("first")  # a new checkpoint makes new runs
            assert (after[identity(run)] != run["run_key"]) == (recipe in uses), identity(run)


@pytest.mark.parametrize(
    ("path", "value"),
    (
        ((*E0, "arch_options"), {"width": 16, "stem": "small"}),
        ((*E0, "policy"), {"first_last": "8bit"}),
        ((*TUNE, "label_smoothing"), 0.1),
        (("loader",), "torch"),
        (("compile",), "off"),
    ),
)
def test_what_can_change_a_number_changes_the_key(path, value):
    before, after = keys(BASE), keys(changed(path, value))
    of_first = [k for k in before if k[:3] == ("digits", "resnet20", "direct")]
    assert all(before[k] != after[k] for k in of_first)


def test_what_cannot_change_a_number_does_not_change_the_key():
    for path, value in (
        (("runs_per_job",), 7),
        (("runtime_minutes",), 5),
        (("gpus",), 1),
        (("suite",), "paper"),
    ):
        assert keys(changed(path, value)) == keys(BASE)
    more = copy.deepcopy(BASE)
    more["experiments"][0]["seeds"].append(5)
    more["experiments"][1]["methods"].append("dorefa")
    assert keys(BASE).items() <= keys(more).items()


def test_a_method_s_own_groups_change_its_own_runs_alone():
    config = changed((*TUNE, "method_groups"), {"direct": {"levels": {"lr_scale": 0.03}}})
    before, after = keys(BASE), keys(config)
    assert {k[2] for k in before if before[k] != after[k]} == {"direct"}
    for run in runs(config).values():
        levels = run["recipe"]["quantizer_groups"]["levels"]
        own = run["method"] == "direct" and run["recipe"]["name"] == "tune"
        assert levels == {"lr_scale": 0.03 if own else 0.1, "weight_decay": 0}
        assert "method_groups" not in run["recipe"]


def test_the_suites_of_the_paper_share_what_is_not_quantized():
    paper, other = (
        {run["run_key"]: run for job in load_suite(name).jobs.values() for run in job.runs}
        for name in ("paper", "paper_shortcut_fp")
    )
    assert {other[key]["method"] for key in other.keys() & paper.keys()} == {"fp"}
    assert all(other[key]["policy"]["shortcut"] == "fp" for key in other.keys() - paper.keys())


def test_a_checkpoint_does_not_depend_on_how_its_users_are_quantized():
    """One checkpoint per data set, network and seed, shared by all methods and policies."""

    def checkpoints(config):
        return {r["run_key"] for r in runs(config).values() if r["role"] == "checkpoint"}

    for path, value in (
        ((*E0, "methods"), ["fp"]),
        ((*E0, "bits"), ["W4A4"]),
        ((*E0, "policy"), {"first_last": "8bit"}),
    ):
        assert checkpoints(changed(path, value)) == checkpoints(BASE)


def test_another_method_leaves_the_keys_of_the_others(monkeypatch):
    config = changed((*E0, "methods"), "all")
    before = keys(config)
    template = baselines.METHODS["pact"]
    monkeypatch.setitem(baselines.METHODS, "zz_new", replace(template, name="zz_new"))
    monkeypatch.setitem(baselines.SOURCES, "zz_new", baselines.SOURCES["pact"])
    after = keys(config)
    assert before.items() <= after.items()
    assert {k[2] for k in after.keys() - before.keys()} == {"zz_new"}


def test_the_compile_switch_replaces_the_suite_s_setting_and_is_part_of_the_key():
    def runs(suite):
        return [run for job in suite.jobs.values() for run in job.runs]

    own, off = load_suite("smoke"), load_suite("smoke", "off")
    assert {run["compile"] for run in runs(off)} == {"off"}
    assert {r["run_key"] for r in runs(own)}.isdisjoint(r["run_key"] for r in runs(off))
    with pytest.raises(InputError, match="'fast'.*auto, off, quantizers, model"):
        load_suite("smoke", "fast")


# -- the version of the code -----------------------------------------------------------------


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A copy of the project that a test may edit, and the code versions that it has."""
    for name in ("lowbit_core", "baselines", "workflow", "config"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    monkeypatch.setattr(identities, "ROOT", tmp_path)

    class Tree:
        root = tmp_path

        @staticmethod
        def change(file, old, new):
            text = (tmp_path / file).read_text()
            assert old in text, f"{file} does not hold {old!r}"
            (tmp_path / file).write_text(text.replace(old, new, 1))

        @staticmethod
        def append(file, text):
            with (tmp_path / file).open("a") as stream:
                stream.write(text)

        @staticmethod
        def versions():
            code_version.cache_clear()
            identities._code.cache_clear()
            return {name: code_version(name) for name in baselines.SOURCES}

    yield Tree
    monkeypatch.undo()
    code_version.cache_clear()
    identities._code.cache_clear()


def test_every_folder_of_the_core_is_numeric_or_known_not_to_be():
    folders = {path.name for path in (ROOT / "lowbit_core").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == {*NUMERIC, "runtime", "datasets"}


def test_code_in_a_numeric_folder_changes_the_version_of_every_method(tree):
    before = tree.versions()
    assert all(re.fullmatch("[0-9a-f]{12}", version) for version in before.values())
    for folder in NUMERIC:
        for suffix in (".py", ".cpp", ".h"):
            for path in sorted((tree.root / "lowbit_core" / folder).glob(f"*{suffix}"))[:1]:
                tree.append(path, "\nint extra;\n" if suffix != ".py" else "\nEXTRA = 1\n")
                after = tree.versions()
                assert all(after[name] != before[name] for name in before), path
                before = after
    tree.append("lowbit_core/kernels/new.h", "#define EXTRA 1\n")
    after = tree.versions()
    assert all(after[name] != before[name] for name in before)


def test_code_that_changes_no_number_changes_no_version(tree):
    before = tree.versions()
    for folder in ("lowbit_core/runtime", "lowbit_core/datasets", "workflow"):
        for path in (tree.root / folder).rglob("*.py"):
            tree.append(path, "\nEXTRA = 1\n")
    for path in (tree.root / "config").rglob("*.*"):  # labels, colours, published values, suites
        tree.append(path, "\n# a remark\n")
    (tree.root / "baselines" / "another.py").write_text("METHODS = ()\n")
    assert tree.versions() == before


def test_comments_docstrings_and_layout_change_no_version(tree):
    before = tree.versions()
    basis = "lowbit_core/quantizers/basis.py"
    tree.change(basis, "RIDGE = 1e-4", "# a remark\nRIDGE   =   1e-4")
    tree.change("lowbit_core/conversion/layers.py", '"""', '"""Other words. ')
    kernels = "lowbit_core/kernels/weights.cpp"
    tree.append(kernels, '\n// a remark: "\n/* another\n one */\n')
    tree.change(kernels, "\n", "\n\n   ")
    assert tree.versions() == before
    tree.change(basis, "1e-4", "2e-4")
    assert all(version != before[name] for name, version in tree.versions().items())


def test_text_that_looks_like_a_comment_counts_in_cpp(tree):
    tree.append("lowbit_core/kernels/weights.cpp", '\nconst char* a = "x//1"; char b = \'"\';\n')
    before = tree.versions()
    tree.change("lowbit_core/kernels/weights.cpp", "x//1", "x//2")
    assert all(version != before[name] for name, version in tree.versions().items())


def test_a_baseline_changes_its_own_methods_and_those_of_the_modules_that_import_it(tree):
    before = tree.versions()
    for module, importers in (("dorefa", {"baselines.pact"}), ("pact", set())):
        tree.append(f"baselines/{module}.py", "\nEXTRA = 1\n")
        after = tree.versions()
        changed_modules = {
            baselines.SOURCES[name] for name in before if after[name] != before[name]
        }
        assert changed_modules == {f"baselines.{module}", *importers}
        before = after


@pytest.mark.parametrize(
    "line",
    (
        "from baselines.dorefa import METHODS as M",
        "from baselines import dorefa",
        "import baselines.dorefa",
        "from .dorefa import METHODS as M",
        "from . import dorefa",
    ),
)
def test_every_way_to_import_a_baseline_counts(tree, monkeypatch, line):
    (tree.root / "baselines" / "another.py").write_text(f"{line}\nMETHODS = ()\n")
    monkeypatch.setitem(baselines.SOURCES, "another", "baselines.another")
    before = tree.versions()
    tree.append("baselines/dorefa.py", "\nfrom baselines import another\n")  # a circle, too
    after = tree.versions()
    assert after["another"] != before["another"] and after["fp"] == before["fp"]


SOURCE = '''"""A docstring."""
import math  # a comment

class A(list[int]):
    """Another."""
    @property
    def b(self, *, c: "int | None" = None) -> str:
        return f"{self!r:>{c}} {'x'} {math.pi:.3f}" f'{c=}'

async def f(x, /, y=1.5, *z, **k):
    match x:
        case {"a": [1, *_]}:
            return [i async for i in y if (j := i) and not z]
        case _:
            del k["b"], x
    try:
        raise ValueError from None
    except* (OSError, KeyError) as error:
        yield lambda: (error, ..., 1j, b"\\0", True)
'''


def test_the_code_of_a_run_is_the_same_in_every_version_of_python():
    """Golden, of Python 3.11.7, 3.12.1 and 3.13.0: another version must not train anew."""
    digest = hashlib.sha256(identities.python_code(SOURCE).encode()).hexdigest()
    assert digest[:12] == "00177fc3c8b4"


@pytest.mark.parametrize(
    ("text", "other"), [("1.5", "1.25"), ("not z", "z"), ("{'x'}", "{'y'}"), ("b: str", "b")]
)
def test_other_code_is_told_apart(text, other):
    source = SOURCE.replace("def b(self", "def b(self, b: str")
    assert identities.python_code(source) != identities.python_code(source.replace(text, other))
