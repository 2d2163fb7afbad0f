"""The configuration of a sweep: what config/config.yaml and `--config` may say."""

import pytest
import yaml

from lowbit_core.runtime.errors import InputError
from workflow.suite.settings import check_config, configured_suite
from workflow.suite.suite import ROOT

SHIPPED = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())


def test_the_shipped_configuration_is_accepted():
    assert configured_suite(SHIPPED).name == "quick"
    check_config({"suite": "quick", "download": True, "gpus_per_run": 2})
    off = configured_suite(SHIPPED | {"compile": False})  # YAML reads the word `off` so
    assert off.config["compile"] == "off"
    empty = configured_suite(SHIPPED | dict.fromkeys(("datasets", "compile", "data_source")))
    assert empty.name == "quick" and empty.part_of is None
    word = SHIPPED | {"download": "false"}
    configured_suite(word)
    assert word["download"] is False


@pytest.mark.parametrize(
    ("config", "words"),
    (
        ({"siute": "quick"}, "'siute'.*suite"),
        ({"download": "yes"}, "download.*'yes'.*bool"),
        ({"per_gpu": True}, "per_gpu.*True.*int"),
        ({"per_gpu": 0}, "per_gpu is 0.*at least 1"),
        ({"budget_minutes": -1}, "budget_minutes is -1.*at least 0"),
        ({"suite": None}, "suite is '': it must be one of .*smoke"),
        ({"data": None}, "data is '': it must be a folder"),
        ({"data": __file__}, "data is .*: it must be a folder"),
        ({"data": "a\nb"}, "data.*one line"),
        ({"data": "{job}"}, "data.*one line"),
        ({"budget_minutes": 5, "gpus_per_run": 2}, "gpus_per_run.*budget_minutes"),
        ({"per_gpu": 2, "gpus_per_run": 2}, "per_gpu.*gpus_per_run.*one of them"),
        ({"suite": "smoke", "gpus_per_run": 3}, "gpus_per_run is 3.*divide.*'checkpoint'.*64"),
        ({"suite": "smoke", "datasets": "imagenet"}, "'imagenet'.*fashion_mnist"),
        ({"compile": "fast"}, "'fast'.*auto, off"),
    ),
)
def test_a_mistake_in_the_configuration_is_answered_in_one_sentence(config, words):
    with pytest.raises(InputError, match=words) as caught:
        configured_suite(SHIPPED | config)
    assert "\n" not in str(caught.value)
