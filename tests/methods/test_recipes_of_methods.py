"""Every shipped suite trains a method at the learning rates of its own source.

The default of a recipe lets levels learn at a tenth of the rate. Methods that need another one get
it from `method_groups`, and config/suites/paper.yaml says where it comes from.
"""

from functools import cache

import pytest

from workflow.suite.suite import SUITES, load_suite

# Runs of two epochs through every part, for tests; their numbers are read nowhere.
NOT_FOR_NUMBERS = {"smoke"}
NAMES = sorted({path.stem for path in SUITES.glob("*.yaml")} - NOT_FOR_NUMBERS)
AT_THE_RATE_OF_THE_WEIGHTS = ("lsq", "lsq_midrise", "lsq_plus", "ewgs")
WITH_VALUES_OF_THE_PAPER_SUITE = ("adabin", "ttq", "apot")


@cache
def documented(of_imagenet):
    """The settings by method and group that the suite `paper` gives."""
    recipe = "imagenet_finetune" if of_imagenet else "cifar_finetune"
    return load_suite("paper").config["recipes"][recipe]["method_groups"]


def runs_of(name, methods):
    """(method, name of the recipe, its groups, data set) of the runs that a suite trains."""
    for run in load_suite(name).runs:
        if run["method"] in methods:
            recipe = run["recipe"]
            yield run["method"], recipe["name"], recipe["quantizer_groups"], run["dataset"]


@pytest.mark.parametrize("name", NAMES)
def test_learned_steps_have_the_rate_of_the_weights(name):
    wrong = {
        (method, recipe)
        for method, recipe, groups, _ in runs_of(name, AT_THE_RATE_OF_THE_WEIGHTS)
        if groups["levels"]["lr_scale"] != 1
    }
    assert not wrong


@pytest.mark.parametrize("name", NAMES)
def test_adabin_ttq_and_apot_have_the_documented_settings(name):
    wrong = {
        (method, recipe, f"{group}.{key} is {groups[group][key]}, not {value}")
        for method, recipe, groups, dataset in runs_of(name, WITH_VALUES_OF_THE_PAPER_SUITE)
        for group, settings in documented(dataset == "imagenet")[method].items()
        for key, value in settings.items()
        if groups[group][key] != value
    }
    assert not wrong


@pytest.mark.parametrize("of_imagenet", (False, True))
def test_the_paper_suite_documents_them_all(of_imagenet):
    found = documented(of_imagenet)
    assert {*AT_THE_RATE_OF_THE_WEIGHTS, *WITH_VALUES_OF_THE_PAPER_SUITE} <= found.keys()
    trained = {method for method, *_ in runs_of("paper", found)}
    assert trained == found.keys()
