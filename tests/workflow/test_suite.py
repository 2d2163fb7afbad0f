"""Suites: what is accepted, what is refused and how, and what determines a run's identity."""

import copy
import re
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import baselines
from lowbit_core.quantizers.interface import Method
from lowbit_core.runtime.errors import InputError
from workflow.suite import suite as suites
from workflow.suite.suite import check_config, code_version, load_suite, parse_suite

RECIPE = {
    "epochs": 2,
    "batch_size": 64,
    "lr": 0.05,
    "weight_decay": 0.0001,
    "train_images": 1280,
    "val_images": 512,
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
    """What the run is, whatever its key."""
    return run["dataset"], run["arch"], run["method"], run["w_bits"], run["seed"], run["role"]


def keys(config):
    return {identity(run): run["run_key"] for run in runs(config).values()}


def refused(config, *words, text=None):
    with pytest.raises(InputError) as caught:
        parse_suite(text if text is not None else yaml.safe_dump(config), "my.yaml")
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    for word in ("my.yaml", *words):
        assert word in message, message


# -- what is refused -------------------------------------------------------------------------

E0, TUNE = ("experiments", 0), ("recipes", "tune")
BAD = {
    "unknown key": (("colour",), 1, "'colour'", "experiments"),
    "unknown recipe key": ((*TUNE, "epoch"), 3, "recipes.tune", "'epoch'", "epochs"),
    "unknown experiment key": ((*E0, "bit"), 3, "experiments[0]", "'bit'", "bits"),
    "unknown policy key": (
        (*E0, "policy"),
        {"firstlast": "fp"},
        "policy",
        "'firstlast'",
        "first_last",
    ),
    "missing key": ((*E0, "bits"), MISSING, "experiments[0]", "'bits'"),
    "method": (
        (*E0, "methods"),
        ["dorfa"],
        "experiments[0].methods",
        "'dorfa'",
        "dorefa",
        "lq_nets",
    ),
    "methods word": ((*E0, "methods"), "al", "experiments[0].methods", "'al'", "all"),
    "ablation method": (
        (*E0, "ablations"),
        [{"methods": ["x"], "bits": ["W2A2"]}],
        "'x'",
        "indirect",
    ),
    "arch": ((*E0, "arch"), "resnet50", "experiments[0].arch", "'resnet50'", "resnet20"),
    "arch option": ((*E0, "arch_options"), {"depth": 3}, "experiments[0].arch", "depth"),
    "arch stem": ((*E0, "arch_options"), {"stem": "big"}, "'big'", "small_stride2"),
    "arch width -1": ((*E0, "arch_options"), {"width": -1}, "experiments[0]", "-1"),
    "arch width 0": ((*E0, "arch_options"), {"width": 0}, "experiments[0]", "0"),
    "arch width 7": ((*E0, "arch_options"), {"width": 7}, "experiments[0]", "7", "at least 8"),
    "arch width 1.5": ((*E0, "arch_options"), {"width": 1.5}, "experiments[0]", "1.5"),
    "arch width word": ((*E0, "arch_options"), {"width": "a"}, "experiments[0]"),
    "arch width huge": ((*E0, "arch_options"), {"width": 10**12}, "experiments[0]"),
    "arch classes": ((*E0, "arch_options"), {"classes": 3}, "experiments[0]", "classes"),
    "arch option key": ((*E0, "arch_options"), {1: 2, "width": 8}, "experiments[0]", "1"),
    "dataset": ((*E0, "dataset"), "mnist", "experiments[0].dataset", "'mnist'", "fashion_mnist"),
    "recipe": ((*E0, "recipe"), "tuna", "experiments[0].recipe", "'tuna'", "tune"),
    "checkpoint recipe": ((*E0, "checkpoint_recipe"), "x", "checkpoint_recipe", "'x'", "first"),
    "augmentation": (
        (*TUNE, "augmentation"),
        "flop",
        "recipes.tune.augmentation",
        "'flop'",
        "flip",
    ),
    "bits W5A5": ((*E0, "bits"), ["W5A5"], "experiments[0].bits", "5", "1, 2, 3, 4, 8, 32"),
    "bits number": ((*E0, "bits"), [7], "experiments[0].bits[0]", "7", "string"),
    "bits order": ((*E0, "bits"), ["2W2A"], "experiments[0].bits", "'2W2A'", "W2A2"),
    "bits float": ((*E0, "bits"), ["W32A32"], "experiments[0]", "W32A32"),
    "bits none": ((*E0, "bits"), [], "experiments[0].bits"),
    "bits twice": ((*E0, "bits"), ["W2A2", "W2A2"], "experiments[0].bits"),
    "epochs": ((*TUNE, "epochs"), -1, "recipes.tune.epochs", "-1", "0"),
    "epochs half": ((*TUNE, "epochs"), 1.5, "recipes.tune.epochs", "1.5", "integer"),
    "epochs 2.0": ((*TUNE, "epochs"), 2.0, "recipes.tune.epochs", "2.0", "integer"),
    "epochs word": ((*TUNE, "epochs"), "two", "recipes.tune.epochs", "'two'", "integer"),
    "seed word": ((*E0, "seeds"), ["zero"], "experiments[0].seeds[0]", "'zero'", "integer"),
    "seed 1.5": ((*E0, "seeds"), [1.5], "experiments[0].seeds[0]", "1.5", "integer"),
    "seed 1.0": ((*E0, "seeds"), [1.0], "experiments[0].seeds[0]", "1.0", "integer"),
    "seed true": ((*E0, "seeds"), [True], "experiments[0].seeds[0]", "True", "integer"),
    "seed -1": ((*E0, "seeds"), [-1], "experiments[0].seeds[0]", "-1"),
    "seed huge": ((*E0, "seeds"), [10**30], "experiments[0].seeds[0]"),
    "seeds scalar": ((*E0, "seeds"), 3, "experiments[0].seeds", "3", "array"),
    "lr 0": ((*TUNE, "lr"), 0, "recipes.tune.lr", "0"),
    "lr nan": ((*TUNE, "lr"), float("nan"), "recipes.tune.lr", "nan"),
    "lr inf": ((*TUNE, "lr"), float("inf"), "recipes.tune.lr", "inf"),
    "batch": ((*TUNE, "batch_size"), 1, "recipes.tune.batch_size", "1", "2"),
    "precision": ((*TUNE, "precision"), "fp16", "precision", "'fp16'", "bf16"),
    "group": ((*TUNE, "quantizer_groups"), {"alpha": {}}, "quantizer_groups", "'alpha'", "clip"),
    "method group": (
        (*TUNE, "method_groups"),
        {"pact": {"codes": {"lr_scale": 2}}},
        "recipes.tune.method_groups.pact",
        "'codes'",
        "clip",
    ),
    "method of a group": (
        (*TUNE, "method_groups"),
        {"pakt": {"clip": {"lr_scale": 2}}},
        "recipes.tune.method_groups",
        "'pakt'",
        "pact",
    ),
    "method group value": (
        (*TUNE, "method_groups"),
        {"pact": {"clip": {"lr_scale": 0}}},
        "recipes.tune.method_groups.pact.clip.lr_scale",
        "0",
    ),
    "method group key": (
        (*TUNE, "method_groups"),
        {"direct": {"levels": {"lr": 1}}},
        "recipes.tune.method_groups.direct.levels",
        "'lr'",
        "lr_scale",
    ),
    "first_last": ((*E0, "policy"), {"first_last": "int8"}, "first_last", "'int8'", "8bit"),
    "exception": (
        (*E0, "policy"),
        {"exceptions": {"fcc": {"w_bits": 2, "a_bits": 2}}},
        "experiments[0]",
        "'fcc'",
        "stem.0",
    ),
    "exception bits": (
        (*E0, "policy"),
        {"exceptions": {"fc": {"w_bits": 5, "a_bits": 2}}},
        "experiments[0]",
        "'fc'",
        "5",
        "1, 2, 3, 4, 8, 32",
    ),
    "exception 2.0": ((*E0, "policy"), {"exceptions": {"fc": {"w_bits": 2.0, "a_bits": 2}}}, "2.0"),
    "exception key": ((*E0, "policy"), {"exceptions": {1: {"w_bits": 2, "a_bits": 2}}}, "1"),
    "suite": (("suite",), "My suite", "suite", "'My suite'", "does not match"),
    "compile": (("compile",), True, "compile", "True", "auto"),
    "loader": (("loader",), "dali", "loader", "'dali'", "ffcv"),
    "no experiments": (("experiments",), [], "experiments"),
    "recipe name": (("recipes", 1), RECIPE, "1"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_answered_in_one_sentence(case):
    path, value, *words = BAD[case]
    refused(changed(path, value), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    (
        ("", ("object",)),
        ("[1]", ("object",)),
        ("a: [", ("YAML",)),
        ("a:\n\t- b", ("YAML",)),
        ("a: \0", ("YAML",)),
        ("a: !!python/object/apply:os.system [ls]", ("YAML",)),
        ("a: 2020-13-45", ("YAML",)),
        ("a: !!int x", ("YAML",)),
        (yaml.safe_dump(BASE) + "suite: quick\n", ("suite", "twice")),
        (
            yaml.safe_dump(BASE).replace("    epochs: 2\n", "    epochs: 2\n    epochs: 5\n", 1),
            ("epochs", "twice"),
        ),
    ),
    ids=range(10),
)
def test_what_is_not_a_suite_is_refused(text, words):
    refused(None, *words, text=text)


def test_an_unknown_recipe_is_named_even_beside_odd_names():
    refused({**changed((*E0, "recipe"), "x"), "recipes": {**BASE["recipes"], 1: RECIPE}})


def test_an_unknown_suite_and_configuration_are_refused():
    with pytest.raises(
        InputError, match="'fast'.*cpu_short, paper, paper_shortcut_fp, quick, smoke"
    ):
        load_suite("fast")
    with pytest.raises(InputError, match="'siute'.*suite"):
        check_config({"siute": "quick"})
    with pytest.raises(InputError, match="download.*'yes'.*bool"):
        check_config({"download": "yes"})
    with pytest.raises(InputError, match="gpus_per_run.*budget_minutes"):
        check_config({"budget_minutes": 5, "gpus_per_run": 2})
    check_config({"suite": "quick", "download": True, "gpus_per_run": 2})


def test_the_compile_switch_replaces_the_suite_s_setting_and_is_part_of_the_key():
    def runs(suite):
        return [run for job in suite.jobs.values() for run in job.runs]

    own, off = load_suite("smoke"), load_suite("smoke", "off")
    assert {run["compile"] for run in runs(off)} == {"off"}
    assert {r["run_key"] for r in runs(own)}.isdisjoint(r["run_key"] for r in runs(off))
    with pytest.raises(InputError, match="'fast'.*auto, off, quantizers, model"):
        load_suite("smoke", "fast")


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.dates(),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from(["all", "W2A2", "fp", "direct", "none", {}, [], -1, 0, 10**25, "\n", "é"]),
)


def paths(value, prefix=()):
    yield prefix
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield from paths(item, (*prefix, key))


@given(data=st.data())
@settings(max_examples=300)
def test_a_mutated_suite_is_accepted_or_refused_quickly(data):
    config = copy.deepcopy(BASE)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from([p for p in paths(config) if p]))
        place = config
        for part in path[:-1]:
            place = place[part]
        action = data.draw(st.sampled_from(["replace", "delete", "add"]))
        if action == "add" and isinstance(place, dict):
            place[data.draw(st.text(max_size=4) | st.integers())] = data.draw(JUNK)
        elif action == "delete" and isinstance(place, dict):
            del place[path[-1]]
        else:
            place[path[-1]] = data.draw(JUNK)
    text = yaml.safe_dump(config, allow_unicode=True)
    began = time.process_time()
    try:
        parsed = parse_suite(text, "my.yaml")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert all(type(run["seed"]) is int for job in parsed.jobs.values() for run in job.runs)
    assert time.process_time() - began < 1


@given(text=st.text(max_size=60))
@settings(max_examples=60)
def test_any_text_is_accepted_or_refused(text):
    with pytest.raises(InputError):
        parse_suite(text, "my.yaml")


# -- expansion -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ("quick", "paper", "paper_shortcut_fp", "smoke"))
def test_shipped_suites_are_valid_and_complete(name):
    suite = load_suite(name)
    assert suite.name == name
    seen = {}
    for job in suite.jobs.values():
        assert job.needs is None or job.needs in suite.jobs
        for run in job.runs:
            assert run["run_id"] not in seen
            seen[run["run_id"]] = run
            if run["role"] != "checkpoint":
                assert run["pretrained"] in [r["run_id"] for r in suite.jobs[job.needs].runs]
    methods = {run["method"] for run in seen.values()}
    assert {m.name for m in baselines.METHODS.values() if not m.ablation} <= methods
    for run in seen.values():  # every comparison has its full-precision run
        if run["role"] == "run":
            assert any(
                r["method"] == "fp"
                and r["role"] == "run"
                and r["seed"] == run["seed"]
                and r["arch"] == run["arch"]
                and r["dataset"] == run["dataset"]
                and r["recipe"]["name"] == run["recipe"]["name"]
                and r["pretrained"] == run["pretrained"]
                for r in seen.values()
            ), run["run_id"]


def test_expansion_is_the_product_of_what_was_asked():
    found = runs(BASE).values()
    first = [r for r in found if r["arch"] == "resnet20"]
    assert len(first) == 2 * (
        1 + 1 + 2 * 2 + 1
    )  # seeds x (checkpoint, fp, two methods x bits, ablation)
    roles = {(r["method"], r["role"]) for r in first}
    assert roles == {
        ("fp", "checkpoint"),
        ("fp", "run"),
        ("direct", "run"),
        ("pact", "run"),
        ("indirect", "ablation"),
    }
    for run in found:
        assert (run["pretrained"] is None) == (run["role"] == "checkpoint")
        assert run["recipe"]["momentum"] == 0.9  # defaults are filled in
        assert run["recipe"]["quantizer_groups"]["levels"] == {"lr_scale": 0.1, "weight_decay": 0}


def test_all_methods_means_those_of_the_main_table():
    found = runs(changed((*E0, "methods"), "all")).values()
    names = {r["method"] for r in found if r["role"] == "run" and r["arch"] == "resnet20"}
    assert names == {m.name for m in baselines.METHODS.values() if not m.ablation}


@pytest.mark.parametrize("name", ("quick", "paper", "smoke", "cpu_short", "tuning"))
def test_names_are_safe_for_paths_and_shells(name):
    for job in load_suite(name).jobs.values():
        assert re.fullmatch(r"[A-Za-z0-9_]+-[a-z0-9]+-s\d+-[0-9a-f]{8}-[a-z]+\d*", job.name)
        for run in job.runs:
            assert re.fullmatch(r"[a-z0-9_]+(-[a-z0-9_]+){5}", run["run_id"])
            assert len(run["run_id"]) < 100


def test_variants_are_one_setting_by_several_recipes():
    assert load_suite("tuning").has_variants
    assert not any(load_suite(name).has_variants for name in ("quick", "paper", "smoke"))
    assert not parse(BASE).has_variants
    again = BASE["experiments"][0] | {"recipe": "spare"}
    assert parse(BASE | {"experiments": [BASE["experiments"][0], again]}).has_variants
    policy = BASE["experiments"][0] | {"policy": {"shortcut": "fp"}}
    assert not parse(BASE | {"experiments": [BASE["experiments"][0], policy]}).has_variants


def test_jobs_hold_no_more_runs_than_asked():
    for limit in (1, 2, 5):
        suite = parse(changed(("runs_per_job",), limit))
        assert max(len(job.runs) for job in suite.jobs.values()) <= limit
        assert sum(len(job.runs) for job in suite.jobs.values()) == len(runs(BASE))


# -- identity --------------------------------------------------------------------------------


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
    own = Method("zz_new", template.weight, template.activation)
    monkeypatch.setitem(baselines.METHODS, "zz_new", own)
    monkeypatch.setitem(baselines.SOURCES, "zz_new", baselines.SOURCES["pact"])
    after = keys(config)
    assert before.items() <= after.items()
    assert {k[2] for k in after.keys() - before.keys()} == {"zz_new"}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A copy of the quant core and the baselines that a test may edit."""
    for name in ("lowbit_core", "baselines"):
        for path in (suites.ROOT / name).rglob("*.py"):
            copied = tmp_path / path.relative_to(suites.ROOT)
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.write_text(path.read_text())
    monkeypatch.setattr(suites, "ROOT", tmp_path)

    def version(method, edits=()):
        for file, edit in edits:
            path = tmp_path / file
            path.write_text(edit(path.read_text()))
        code_version.cache_clear()
        suites._code.cache_clear()
        return code_version(method)

    yield version
    monkeypatch.undo()
    code_version.cache_clear()
    suites._code.cache_clear()


def test_code_version_ignores_comments_docstrings_and_layout(tree):
    before = tree("direct")
    assert re.fullmatch("[0-9a-f]{12}", before)
    edits = [
        (
            "lowbit_core/quantizers/basis.py",
            lambda s: "# a remark\n" + s.replace("RIDGE = 1e-4", "RIDGE   =   1e-4"),
        ),
        (
            "lowbit_core/quantizers/direct.py",
            lambda s: s.replace('"""Direct quantized weights', '"""Weights'),
        ),
        (
            "lowbit_core/conversion/layers.py",
            lambda s: s.replace('"""The weight of this', '"""A weight of this'),
        ),
    ]
    assert tree("direct", edits) == before


def test_code_version_changes_with_the_core_s_code(tree):
    before = {m: tree(m) for m in baselines.METHODS}
    tree(
        "direct",
        [("lowbit_core/quantizers/basis.py", lambda s: s.replace("RIDGE = 1e-4", "RIDGE = 2e-4"))],
    )
    assert all(tree(m) != before[m] for m in baselines.METHODS)


def test_code_version_follows_the_baselines_that_a_method_imports(tree):
    before = {m: tree(m) for m in baselines.METHODS}
    tree("fp", [("baselines/dorefa.py", lambda s: s + "\nEXTRA = 1\n")])
    changed_methods = {m for m in baselines.METHODS if tree(m) != before[m]}
    assert changed_methods == {"dorefa", "pact"}


def test_code_version_ignores_reporting(tree):
    before = tree("direct")
    edits = [
        (f"lowbit_core/runtime/{n}.py", lambda s: s + "\nEXTRA = 1\n")
        for n in ("progress", "errors", "hardware")
    ]
    assert tree("direct", edits) == before


def test_a_new_method_file_leaves_the_others_versions(tree):
    before = {m: tree(m) for m in baselines.METHODS}
    (suites.ROOT / "baselines" / "another.py").write_text("METHODS = ()\n")
    assert {m: tree(m) for m in baselines.METHODS} == before


@pytest.mark.parametrize(
    "line",
    (
        "from baselines.dorefa import METHODS as M",
        "from baselines import dorefa",
        "import baselines.dorefa",
    ),
)
def test_every_way_to_import_a_baseline_counts(tree, monkeypatch, line):
    (suites.ROOT / "baselines" / "another.py").write_text(f"{line}\nMETHODS = ()\n")
    monkeypatch.setitem(baselines.SOURCES, "another", "baselines.another")
    before = tree("another")
    edits = [("baselines/dorefa.py", lambda s: s + "\nEXTRA = 1\n")]
    assert tree("another", edits) != before


def test_a_suite_must_bear_the_name_of_its_file(tmp_path, monkeypatch):
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(BASE))
    monkeypatch.setattr(suites, "SUITES", tmp_path)
    with pytest.raises(InputError, match="'smoke'.*must be the file's name, 'other'"):
        load_suite("other")


def test_a_part_of_a_suite_by_data_set():
    paper = load_suite("paper")
    part = paper.only("cifar100")
    assert part.datasets == ["cifar100"]
    assert set(part.jobs) < set(paper.jobs)
    assert paper.only("").jobs == paper.jobs
    with pytest.raises(InputError, match="'mnist'.*cifar100, imagenet"):
        paper.only("cifar100,mnist")
