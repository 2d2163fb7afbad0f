"""Labels, colours and markers: of every method, also of one that has none; no part of a run."""

import ast
import dataclasses
import re
from itertools import groupby
from pathlib import Path

import pytest

import baselines
from lowbit_core.quantizers.interface import Method
from lowbit_core.runtime.errors import InputError
from workflow.results import labels


def test_a_method_holds_nothing_that_only_shows():
    """So recolouring a method cannot change the code version of its runs."""
    names = {field.name for field in dataclasses.fields(Method)}
    assert names.isdisjoint({"label", "color", "marker"})


def test_no_code_but_the_baselines_knows_a_method_by_name():
    """Full precision apart, which is what the others are compared with."""
    root = Path(baselines.__file__).parents[1]
    names = baselines.METHODS.keys() - {"fp"}
    for folder in ("lowbit_core", "workflow"):
        for path in (root / folder).rglob("*.py"):
            constants = {n.value for n in ast.walk(ast.parse(path.read_text()))
                         if isinstance(n, ast.Constant) and isinstance(n.value, str)}  # fmt: skip
            assert not names & constants, f"{path} names {names & constants}"
        for path in (root / folder).rglob("*.smk"):
            assert not any(f'"{name}"' in path.read_text() for name in names), path


def test_every_method_has_a_look_of_its_own():
    looks = {(labels.method_color(name), labels.method_marker(name)) for name in baselines.METHODS}
    assert len(looks) == len(baselines.METHODS)
    assert [labels.method_order(name) for name in labels.method_names()] == list(
        range(len(labels.method_names()))
    )
    assert labels.method_label("lsq") == "LSQ"


def test_every_method_has_a_family_and_they_stay_together():
    order = [labels.method_family(name) for name in labels.method_names()]
    assert all(labels.method_family(name) != labels.OTHER for name in baselines.METHODS)
    assert list(dict.fromkeys(order)) == [family for family, _ in groupby(order)]
    assert labels.family_order(labels.OTHER) == len(labels.load_labels()["families"])
    assert labels.method_family("not a method") == labels.OTHER


@pytest.mark.parametrize(
    ("entry", "words"),
    (
        ("{family: aneald}", "parq.family is 'aneald': it must be one of full"),
        ("{marker: zz}", "parq.marker is 'zz': it must be one of"),
        ("{color: blau}", "parq.color is 'blau': it must be a colour"),
        ("{label: 7}", "parq.label is 7: it must be text"),
    ),
)
def test_a_wrong_look_is_one_sentence(entry, words, monkeypatch, tmp_path):
    text = re.sub(r"^  parq: .*$", f"  parq: {entry}", labels.PATH.read_text(), flags=re.M)
    (tmp_path / "labels.yaml").write_text(text)
    monkeypatch.setattr(labels, "PATH", tmp_path / "labels.yaml")
    labels.load_labels.cache_clear()
    try:
        with pytest.raises(InputError, match=words):
            labels.load_labels()
    finally:
        labels.load_labels.cache_clear()


def test_a_method_without_an_entry_gets_its_name_and_a_look(monkeypatch):
    for name in baselines.METHODS.keys() - labels.load_labels()["methods"].keys():
        monkeypatch.delitem(baselines.METHODS, name)  # one that somebody adds
    for name in ("zz", "aa"):
        method = dataclasses.replace(baselines.METHODS["pact"], name=name)
        monkeypatch.setitem(baselines.METHODS, name, method)
    monkeypatch.delitem(baselines.METHODS, "lsq")  # as a published method that is not ours
    labels.method_names.cache_clear()
    try:
        assert labels.method_label("zz") == "zz"
        assert labels.method_family("zz") == labels.OTHER
        assert labels.method_names()[-2:] == ("zz", "aa")
        look = [(labels.method_color(name), labels.method_marker(name)) for name in ("aa", "zz")]
        assert look == list(zip(labels.COLORS, labels.MARKERS, strict=False))[:2]
        assert labels.method_order("pact") < labels.method_order("zz")
        steps = [n for n in labels.method_names() if labels.method_family(n) == "learned steps"]
        assert steps[-1] == "lsq"
    finally:
        labels.method_names.cache_clear()
