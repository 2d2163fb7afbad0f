"""Suites: what is accepted, what is refused and how, and the runs and jobs they expand into."""

import copy
import re

import pytest
import yaml
from example_suite import BASE, E0, MISSING, RECIPE, TUNE, changed, parse, runs
from hypothesis import given, settings
from hypothesis import strategies as st

import baselines
from lowbit_core.runtime.errors import InputError
from workflow.suite import suite as suites
from workflow.suite.suite import load_suite, parse_suite


def refused(config, *words, text=None):
    with pytest.raises(InputError) as caught:
        parse_suite(text if text is not None else yaml.safe_dump(config), "my.yaml")
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    for word in ("my.yaml", *words):
        assert word in message, message


# -- what is refused -------------------------------------------------------------------------

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
    "arch width 0": ((*E0, "arch_options"), {"width": 0}, "arch_options.width: 0", "minimum of 0"),
    "arch width 7": ((*E0, "arch_options"), {"width": 7}, "experiments[0]", "7", "at least 8"),
    "arch width 1.5": ((*E0, "arch_options"), {"width": 1.5}, "experiments[0]", "1.5"),
    "arch width word": ((*E0, "arch_options"), {"width": "a"}, "arch_options.width: 'a'", "number"),
    "arch width huge": ((*E0, "arch_options"), {"width": 4097}, "width: 4097", "maximum of 4096"),
    "arch classes": ((*E0, "arch_options"), {"classes": 3}, "experiments[0]", "classes"),
    "arch option key": ((*E0, "arch_options"), {1: 2, "width": 8}, "'1'", "not text"),
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
    "method decay bits": (
        (*TUNE, "method_groups"),
        {"pact": {"weight_decay": {"W5": 0.1}}},
        "recipes.tune.method_groups.pact.weight_decay",
        "'W5'",
        "W8",
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
    "exception key": (
        (*E0, "policy"),
        {"exceptions": {1: {"w_bits": 2, "a_bits": 2}}},
        "'1'",
        "not text",
    ),
    "suite": (("suite",), "My suite", "suite", "'My suite'", "does not match"),
    "compile": (("compile",), True, "compile", "True", "auto"),
    "loader": (("loader",), "dali", "loader", "'dali'", "ffcv"),
    "deploy word": (("deploy",), "yes please", "deploy", "'yes please'", "boolean"),
    "deploy number": (("deploy",), 1, "deploy", "1", "boolean"),
    "deploy images 0": (("deploy_images",), 0, "deploy_images", "0", "minimum of 1"),
    "deploy images word": (("deploy_images",), "all", "deploy_images", "'all'", "integer"),
    "deploy images half": (("deploy_images",), 0.5, "deploy_images", "0.5", "integer"),
    "no experiments": (("experiments",), [], "experiments"),
    "recipe name": (("recipes", 1), RECIPE, "'1'", "not text"),
    "val_images": (
        (*TUNE, "val_images"),
        1437,
        "recipes.tune.val_images",
        "1437",
        "1436",
        "digits",
    ),
    "train_images": (
        (*TUNE, "train_images"),
        1182,
        "recipes.tune.train_images",
        "1182",
        "at most 1181",
        "digits",
        "1437",
        "256",
    ),
    "batch larger than the training images": (
        (*TUNE, "batch_size"),
        641,
        "recipes.tune.batch_size",
        "641",
        "at most 640",
    ),
    "batch larger than the data set": (
        ("recipes", "first"),
        {**RECIPE, "train_images": None, "batch_size": 1182},
        "recipes.first.batch_size",
        "1182",
        "at most 1181",
    ),
    "images too small": (
        ("experiments", 1, "arch_options"),
        {"stem": "imagenet"},
        "experiments[1].arch",
        "alexnet",
        "digits",
        "8 pixels",
    ),
    "two runs for one cell of a table": (
        ("experiments", 1),
        {**BASE["experiments"][0], "policy": {"shortcut": "fp"}, "ablations": []},
        "resnet20-direct-w2a2-s0",
        "a table takes one",
        "another suite",
    ),
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
    refused({**changed((*E0, "recipe"), "x"), "recipes": {**BASE["recipes"], "1": RECIPE}}, "1")


def test_an_unknown_suite_is_refused():
    with pytest.raises(
        InputError,
        match="'fast'.*cpu_short, eight_bits, flip_tuning, paper, paper_shortcut_fp, precision, "
        "quick, smoke",
    ):
        load_suite("fast")


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
def test_a_mutated_suite_is_accepted_or_refused_in_one_line(data):
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
    try:
        parsed = parse_suite(text, "my.yaml")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert all(type(run["seed"]) is int for job in parsed.jobs.values() for run in job.runs)


@given(text=st.text(max_size=60))
@settings(max_examples=60)
def test_any_text_is_accepted_or_refused(text):
    with pytest.raises(InputError):
        parse_suite(text, "my.yaml")


@pytest.mark.parametrize("value", (True, False))
@pytest.mark.parametrize("images", (None, 1, 10_000))
def test_deployment_is_asked_for_by_a_key_and_changes_no_run(value, images):
    suite = parse({**BASE, "deploy": value, "deploy_images": images})
    assert (suite.config["deploy"], suite.config["deploy_images"]) == (value, images)
    plain = parse(BASE)
    assert (plain.config["deploy"], plain.config["deploy_images"]) == (False, None)
    assert suite.jobs == plain.jobs


def test_a_comparison_of_recipes_reads_no_test_images():
    other = {**BASE["experiments"][0], "recipe": "spare"}
    config = {**BASE, "experiments": [BASE["experiments"][0], other]}
    assert parse(config).has_variants
    refused({**config, "deploy": True}, "deploy is true", "compares recipes")


@pytest.mark.parametrize("name", ("quick", "smoke", "paper", "zoo", "cpu_short"))
def test_every_job_is_of_the_checkpoint_that_it_starts_from(name):
    suite = load_suite(name)
    found = [job.name for jobs in suite.starts.values() for job in jobs]
    assert sorted(found) == sorted(suite.jobs)
    for start, jobs in suite.starts.items():
        [checkpoint] = suite.jobs[f"{start}-checkpoint"].runs
        for run in (run for job in jobs for run in job.runs if run["pretrained"]):
            assert run["pretrained"] == checkpoint["run_id"]


# -- expansion -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in suites.SUITES.glob("*.yaml")))
def test_shipped_suites_are_valid_and_complete(name):
    suite = load_suite(name)
    assert suite.name == name
    seen = {}
    for job in suite.jobs.values():
        assert set(job.needs) <= suite.jobs.keys()
        for run in job.runs:
            assert run["run_id"] not in seen
            seen[run["run_id"]] = run
            if run["role"] != "checkpoint":
                assert run["pretrained"] in [r["run_id"] for r in suite.loaded_by(job)]
    methods = {run["method"] for run in seen.values()}
    widths = {run["w_bits"] for run in seen.values() if run["method"] == "apot"}  # of `all`
    main = [m for m in baselines.METHODS.values() if not m.ablation]
    if any(experiment["methods"] == "all" for experiment in suite.config["experiments"]):
        assert {m.name for m in main if any(map(m.offers, widths))} <= methods
    has_variants = suite.has_variants  # they are compared among themselves
    for run in seen.values():  # every comparison has its full-precision run
        if run["role"] == "run" and not has_variants:
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


def test_a_method_can_have_weight_decay_by_width():
    decay = {"pact": {"weight_decay": {"W2": 0.25, "W4": 0.5}, "clip": {"lr_scale": 3}}}
    found = runs(changed((*TUNE, "method_groups"), decay)).values()
    used = {(r["method"], r["w_bits"]): r["recipe"]["weight_decay"] for r in found}
    plain = RECIPE["weight_decay"]
    assert used["pact", 2] == 0.25 and used["direct", 2] == plain
    assert {used[key] for key in used if key[1] not in (2, 4)} == {plain}


def test_recipes_may_use_every_image_of_the_data_set():
    whole = {**RECIPE, "train_images": None, "val_images": 256, "batch_size": 1181}
    assert runs(changed(("recipes", "tune"), whole))
    assert runs(changed(("recipes", "tune"), {**whole, "train_images": 1181, "batch_size": 2}))


def test_all_methods_means_those_of_the_main_table():
    found = runs(changed((*E0, "methods"), "all")).values()
    names = {r["method"] for r in found if r["role"] == "run" and r["arch"] == "resnet20"}
    assert names == {m.name for m in baselines.METHODS.values() if not m.ablation}


@pytest.mark.parametrize(
    "name", ("quick", "paper", "smoke", "cpu_short", "tuning", "flip_tuning", "eight_bits")
)
def test_names_are_safe_for_paths_and_shells(name):
    for job in load_suite(name).jobs.values():
        assert re.fullmatch(r"[A-Za-z0-9_]+-[a-z0-9]+-s\d+-[0-9a-f]{8}-[a-z]+\d*", job.name)
        for run in job.runs:
            assert re.fullmatch(r"[a-z0-9_]+(-[a-z0-9_]+){5}", run["run_id"])
            assert len(run["run_id"]) < 100


def test_variants_are_one_setting_by_several_recipes():
    assert all(load_suite(name).has_variants for name in ("tuning", "flip_tuning", "eight_bits"))
    assert not any(load_suite(name).has_variants for name in ("quick", "paper", "smoke"))
    assert not parse(BASE).has_variants
    again = BASE["experiments"][0] | {"recipe": "spare"}
    variants = BASE | {"experiments": [BASE["experiments"][0], again]}
    assert parse(variants).has_variants


def test_variants_do_not_share_a_cell():
    """Two networks, policies or values of an option are not averaged under one recipe's name."""
    first = BASE["experiments"][0]
    variants = [first, first | {"recipe": "spare"}]
    for other in (
        first | {"policy": {"shortcut": "fp"}, "ablations": []},
        first | {"arch_options": {"width": 16, "stem": "small"}},
    ):
        refused(BASE | {"experiments": [*variants, other]}, "and recipe (", "another suite")
    options = [{"distill": {"temperature": t}} for t in (1, 4)]
    part = {"methods": ["direct"], "bits": ["W2A2"], "options": options}
    refused(
        BASE | {"experiments": [first | {"ablations": [part]}, variants[1]]},
        "and recipe (",
        "+distill",
    )


def test_a_part_of_a_suite_compares_recipes_if_the_whole_does():
    first = BASE["experiments"][0]
    elsewhere = first | {"dataset": "fashion_mnist", "arch": "resnet20"}
    suite = parse(BASE | {"experiments": [elsewhere, first, first | {"recipe": "spare"}]})
    assert suite.only("fashion_mnist").has_variants and suite.only("fashion_mnist").hides_test


def test_test_images_are_hidden_until_a_choice_is_confirmed():
    again = BASE["experiments"][0] | {"recipe": "spare"}
    variants = BASE | {"experiments": [BASE["experiments"][0], again]}
    assert parse(variants).hides_test and not parse(BASE).hides_test
    assert not parse(variants | {"compare_on": "test"}).hides_test
    with pytest.raises(InputError, match="compare_on is 'test': it must be left out in a suite"):
        parse(BASE | {"compare_on": "test"})
    with pytest.raises(InputError, match="compare_on: 'tests' is not one of"):
        parse(variants | {"compare_on": "tests"})


def test_jobs_hold_no_more_runs_than_asked():
    for limit in (1, 2, 5):
        suite = parse(changed(("runs_per_job",), limit))
        assert max(len(job.runs) for job in suite.jobs.values()) <= limit
        assert sum(len(job.runs) for job in suite.jobs.values()) == len(runs(BASE))


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


@pytest.mark.parametrize("name", ["runs", "reference", "benchmarks"])
def test_a_suite_does_not_take_the_name_of_another_folder_of_the_results(name):
    with pytest.raises(InputError, match=f"suite is '{name}': results/ has this name already"):
        parse_suite(yaml.safe_dump(BASE | {"suite": name}), "my.yaml")


@pytest.mark.parametrize("names", [",", "digits,"])
def test_a_data_set_without_a_name_is_refused(names):
    suite = parse_suite(yaml.safe_dump(BASE), "my.yaml")
    assert suite.only(" ").jobs == suite.jobs
    with pytest.raises(InputError, match="data set for suite"):
        suite.only(names)
