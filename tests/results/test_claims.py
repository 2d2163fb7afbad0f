"""The claims table: golden values, and what must hold for any results."""

import random
from itertools import product

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow.results import claims
from workflow.results.claims import bootstrap_interval, claim_rows

accuracies = st.integers(0, 100_000).map(lambda n: n / 1000)
seeds = st.lists(st.tuples(accuracies, accuracies), min_size=1, max_size=6)
settings_of = st.dictionaries(
    st.tuples(st.sampled_from(["alexnet", "resnet20"]), st.sampled_from([1, 2, 3])),
    seeds,
    min_size=1,
)


def run(method, top1, seed, arch="resnet20", w_bits=2):
    return {
        "suite": "made", "dataset": "cifar100", "arch": arch, "method": method, "w_bits": w_bits,
        "a_bits": 2, "seed": seed, "role": "run", "status": "done" if top1 is not None else
        "diverged", "top1": top1, "pretrained": f"{arch}-s{seed}",
    }  # fmt: skip


def made(one: list, two: list, method="direct", other="indirect", **where) -> pd.DataFrame:
    pairs = zip(one, two, strict=True)
    return pd.DataFrame(
        [
            r
            for s, (a, b) in enumerate(pairs)
            for r in (run(method, a, s, **where), run(other, b, s, **where))
        ]
    )


def many(settings: dict, method="direct", other="indirect") -> pd.DataFrame:
    return pd.concat(
        [
            made(*map(list, zip(*pairs, strict=True)), method, other, arch=arch, w_bits=bits)
            for (arch, bits), pairs in settings.items()
        ],
        ignore_index=True,
    )


def test_golden():
    """Differences 1, 2, 6 by hand: mean 3; with three the 95 % interval is their range."""
    [row] = claim_rows(made([61, 62, 66], [60, 60, 60]))
    assert row | {
        "dataset": "cifar100", "arch": "resnet20", "bits": "W2A2", "claim": "direct update",
        "method": "direct", "other": "indirect", "n": 3, "pairs": 3, "diverged": 0,
        "top1_mean": 63.0, "other_top1_mean": 60.0, "top1_difference_mean": 3.0,
        "top1_difference_low": 1.0, "top1_difference_high": 6.0, "verdict": "leads", "note": "",
    } == row  # fmt: skip
    assert claims.difference_text(row) == "+3.00 [+1.00, +6.00]"


def test_interval_against_all_resamples():
    """Of four differences: quantiles of the 256 equally likely means, enumerated."""
    values = [-1.0, 0.5, 2.0, 7.0]
    every = pd.Series([sum(c) / 4 for c in product(values, repeat=4)])
    low, high = bootstrap_interval([values], 1)
    assert low == pytest.approx(every.quantile(0.025), abs=0.26)  # the distance of two means
    assert high == pytest.approx(every.quantile(0.975), abs=0.38)


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ([61, 62, 63], [60, 60, 60], "leads"),
        ([59, 58, 57], [60, 60, 60], "trails"),
        ([61, 59, 63], [60, 60, 60], "undecided"),
        ([90, 90], [10, 10], "undecided"),  # two pairs tell nothing
        ([61, 62, 63, None], [60, 60, 60, 60], "undecided"),  # it diverged once: no lead
        ([61, 62, 63, 64], [60, 60, 60, None], "leads"),
        ([None, None], [60, 60], "undecided"),
    ],
)
def test_verdict(one, two, expected):
    [row] = claim_rows(made(one, two))
    assert row["verdict"] == expected
    assert (row["diverged"], row["other_diverged"]) == (one.count(None), two.count(None))
    if row["n"] < 3:
        assert "top1_difference_low" not in row and "no interval" in row["note"]


def test_seeds_from_other_checkpoints_are_no_pair():
    table = made([61, 62, 63], [60, 60, 60])
    table.loc[table["method"] == "indirect", "pretrained"] = "another"
    assert claim_rows(table) == []


def test_over_all_averages_a_checkpoint_first_and_leaves_out_what_has_too_few():
    table = many({
        ("resnet20", 1): [(61, 60), (62, 60), (63, 60)],
        ("resnet20", 2): [(63, 60), (62, 60), (61, 60)],
        ("alexnet", 2): [(10, 60)],
    })  # fmt: skip
    last = claim_rows(table)[-1]
    assert (last["arch"], last["bits"], last["n"], last["pairs"]) == ("all", "all", 3, 6)
    assert last["top1_difference_low"] == last["top1_difference_high"] == 2.0
    assert last["note"] == "left out, n below 3: AlexNet (BN)"


def test_every_baseline_is_compared():
    names = [
        name
        for _, one, name in claims.comparisons({"direct", "pact", "dorefa", "mine", "fp"})
        if one == "direct"
    ]
    assert sorted(names) == ["dorefa", "mine", "pact"]


@given(settings_of)
def test_swapping_the_pair_flips_the_signs(settings):
    ahead = claim_rows(many(settings))
    behind = claim_rows(many({k: [(b, a) for a, b in v] for k, v in settings.items()}))
    flipped = {"leads": "trails", "trails": "leads", "undecided": "undecided"}
    for one, two in zip(ahead, behind, strict=True):
        assert two["verdict"] == flipped[one["verdict"]]
        assert two["top1_difference_mean"] == pytest.approx(-one["top1_difference_mean"], abs=1e-9)
        if "top1_difference_low" in one:
            mirrored = -two["top1_difference_high"], -two["top1_difference_low"]
            got = one["top1_difference_low"], one["top1_difference_high"]
            assert got == pytest.approx(mirrored, abs=2e-3)


@given(settings_of)
def test_the_interval_holds_the_mean(settings):
    for row in claim_rows(many(settings)):
        if row["n"] >= 3 and "top1_difference_low" in row:
            low, high = row["top1_difference_low"], row["top1_difference_high"]
            assert low - 1e-3 <= row["top1_difference_mean"] <= high + 1e-3


@given(settings_of, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(settings, shuffler: random.Random):
    table = many(settings)
    order = list(table.index)
    shuffler.shuffle(order)
    assert claim_rows(table.loc[order]) == claim_rows(table)


def test_markdown_says_what_it_is():
    text = claims.markdown(claim_rows(made([61, 62], [60, 60])), "small")
    assert "nothing follows for full-length training" in text
    assert "undecided (n below 3: no interval)" in text
    assert text.count("Not tested by this suite.") == 2
