"""The claims table: golden values, and what must hold for any results."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow.comparisons import load_comparisons
from workflow.results import claims
from workflow.results.claims import claim_rows

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


def made(one: list, two: list, method="direct", other="indirect", **where) -> list[dict]:
    return [
        row
        for seed, (a, b) in enumerate(zip(one, two, strict=True))
        for row in (run(method, a, seed, **where), run(other, b, seed, **where))
    ]


def many(settings: dict, method="direct", other="indirect") -> list[dict]:
    return [
        row
        for (arch, bits), pairs in settings.items()
        for row in made(*map(list, zip(*pairs, strict=True)), method, other, arch=arch, w_bits=bits)
    ]


def test_golden():
    """Differences 1, 2, 6 by hand: mean 3, std sqrt(7); the only setting is the primary answer."""
    [row] = claim_rows(made([61, 62, 66], [60, 60, 60]))
    assert row | {
        "dataset": "cifar100", "arch": "resnet20", "bits": "W2A2", "claim": "direct update",
        "method": "direct", "other": "indirect", "primary": "yes", "n": 3, "pairs": 3,
        "diverged": 0, "top1_mean": 63.0, "other_top1_mean": 60.0, "top1_difference_mean": 3.0,
        "p_adjusted": row["p"], "verdict": "undecided", "note": "",
    } == row  # fmt: skip
    assert row["top1_difference_std"] == pytest.approx(7**0.5)
    assert claims.difference_text(row) == "+3.00 [−3.57, +9.57]"


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ([61, 61.2, 61.1], [60, 60, 60], "leads"),
        ([59, 58.8, 58.9], [60, 60, 60], "trails"),
        ([60.1, 59.9, 60], [60, 60, 60], "equal"),
        ([61, 59, 63], [60, 60, 60], "undecided"),
        ([90, 90], [10, 10], "undecided"),  # two pairs tell nothing
        ([61, 61.2, 61.1, None], [60, 60, 60, 60], "undecided"),  # it diverged once: no lead
        ([61, 61.2, 61.1, 64], [60, 60, 60, None], "leads"),
        ([None, None], [60, 60], "undecided"),
    ],
)
def test_verdict(one, two, expected):
    [row] = claim_rows(made(one, two))
    assert row["verdict"] == expected
    assert (row["diverged"], row["other_diverged"]) == (one.count(None), two.count(None))
    if row["n"] < 3:
        assert row["top1_difference_low"] is None and "no interval" in row["note"]


def test_seeds_from_other_checkpoints_are_no_pair():
    table = made([61, 62, 63], [60, 60, 60])
    changed = [
        row | {"pretrained": "another"} if row["method"] == "indirect" else row for row in table
    ]
    assert claim_rows(changed) == []


def test_over_all_averages_a_checkpoint_first_and_leaves_out_what_has_too_few():
    table = many({
        ("resnet20", 1): [(61, 60), (62, 60), (63, 60)],
        ("resnet20", 2): [(63.1, 60), (62, 60), (60.9, 60)],
        ("alexnet", 2): [(10, 60)],
    })  # fmt: skip
    last = claim_rows(table)[-1]
    assert (last["arch"], last["bits"], last["n"], last["pairs"]) == ("all", "all", 3, 6)
    # The means of a checkpoint are 2.05, 2, 1.95: error 0.05 / sqrt(3), t(2) = 4.303.
    assert last["top1_difference_mean"] == pytest.approx(2.0)
    assert last["top1_difference_low"] == pytest.approx(2 - 4.303 * 0.05 / 3**0.5, abs=1e-4)
    assert (last["primary"], last["verdict"], last["p_adjusted"]) == ("yes", "leads", last["p"])
    assert last["note"] == "left out, n below 3: AlexNet (BN)"


def test_over_all_every_checkpoint_has_the_same_settings():
    """A setting that only some checkpoints have would count as noise between checkpoints."""
    common = [(61, 60), (61.2, 60), (61.1, 60), (60.9, 60), (61, 60), (61.1, 60), (61.05, 60)]
    table = many({("resnet20", 2): common, ("resnet20", 1): [(70, 60), (80, 60), (90, 60)]})
    one, two, last = claim_rows(table)
    assert (one["bits"], one["n"], two["bits"], two["n"]) == ("W1A2", 3, "W2A2", 7)
    same = "n", "pairs", "top1_mean", "other_top1_mean", "top1_difference_mean", "p"
    assert {key: last[key] for key in same} == {key: two[key] for key in same}
    assert last["note"] == "left out, too few starts in common: ResNet-20 W1A2"
    assert last["top1_mean"] - last["other_top1_mean"] == pytest.approx(1.05)


def test_a_setting_that_lacks_a_seed_is_averaged_over_the_others():
    """One seed less, or one run of the rival that diverged, must not hide a whole bit-width."""
    ahead = [(60.4, 60), (60.5, 60), (60.6, 60), (60.5, 60)]
    behind = [(59.2, 60), (59.3, 60), (59.4, None), (59.3, 60)]
    one, two, last = claim_rows(many({("resnet20", 1): ahead, ("resnet20", 2): behind}))
    assert (one["n"], two["n"], last["n"], last["pairs"], last["note"]) == (4, 3, 3, 6, "")
    # Of seeds 0, 1 and 3: -0.2, -0.1, -0.1.
    assert last["top1_difference_mean"] == pytest.approx(-0.4 / 3)


def test_settings_without_common_checkpoints_are_not_joined():
    wide = many({("resnet20", 1): [(61, 60), (62, 60), (61.5, 60)]})
    narrow = [
        row | {"seed": row["seed"] + 3, "pretrained": f"resnet20-s{row['seed'] + 3}"}
        for row in many({("resnet20", 2): [(59, 60), (58, 60), (58.5, 60)]})
    ]
    one, two, last = claim_rows(wide + narrow)
    assert (one["n"], two["n"], last["n"]) == (3, 3, 3)
    assert last["top1_difference_mean"] == one["top1_difference_mean"]
    assert last["note"] == "left out, too few starts in common: ResNet-20 W2A2"


def test_a_method_that_diverged_in_a_network_that_is_left_out_leads_nothing():
    good = [(61, 60), (61.2, 60), (61.1, 60)]
    bad = [(None, 60), (None, 60), (None, 60)]
    last = claim_rows(many({("resnet20", 2): good, ("mobilenetv2", 2): bad}))[-1]
    assert (last["n"], last["diverged"], last["verdict"]) == (3, 3, "undecided")
    assert last["note"] == "left out, n below 3: MobileNetV2"


def test_answers_to_one_question_are_adjusted_for_their_number():
    """Four baselines are four chances to lead by luck."""
    close = [(61, 60), (62, 60), (61.5, 60)]
    [alone] = claim_rows(made(*map(list, zip(*close, strict=True)), other="lsq"))
    assert alone["verdict"] == "leads" and alone["p_adjusted"] == alone["p"] < 0.05
    table = {}
    for other in ("lsq", "pact", "dorefa", "lq_nets"):
        for row in made(*map(list, zip(*close, strict=True)), other=other):
            table[row["method"], row["seed"]] = row
    rows = [row for row in claim_rows(list(table.values())) if row["claim"] == alone["claim"]]
    assert [row["verdict"] for row in rows] == ["undecided"] * 4
    assert all(row["p_adjusted"] == pytest.approx(4 * row["p"]) for row in rows)


def test_differences_that_are_all_the_same_give_no_interval():
    [row] = claim_rows(made([60.01] * 3, [60] * 3))
    assert (row["p"], row["verdict"]) == (None, "undecided")
    assert row["note"] == "all differences are the same: no interval"


def test_rows_of_single_settings_are_adjusted_for_their_number():
    """One setting has p = 0.03 and leads alone; beside three others it is undecided."""
    lead, rest = [(61, 60), (62, 60), (61.5, 60)], [(60, 60), (61, 60), (59, 60)]
    [alone] = claim_rows(many({("resnet20", 1): lead}))
    assert alone["verdict"] == "leads" and 0.0125 < alone["p"] < 0.05
    first, *others = claim_rows(
        many({("resnet20", 1): lead} | {("resnet20", b): rest for b in (2, 3, 4)})
    )
    assert first["p"] == alone["p"]
    assert first["p_adjusted"] == pytest.approx(4 * alone["p"])
    assert first["verdict"] == "undecided" and first["primary"] == ""
    assert [row["primary"] for row in others] == ["", "", "", "yes"]


def test_every_baseline_is_compared():
    comparisons = load_comparisons()
    baseline = comparisons.claims[-1]
    found = comparisons.pairs(baseline, ["direct", "indirect", "pact", "dorefa", "mine", "fp"])
    assert found == [("direct", "pact"), ("direct", "dorefa"), ("direct", "mine")]


@given(settings_of)
def test_swapping_the_pair_swaps_the_verdicts(settings):
    ahead = claim_rows(many(settings))
    behind = claim_rows(many({k: [(b, a) for a, b in v] for k, v in settings.items()}))
    flipped = {"leads": "trails", "trails": "leads", "equal": "equal", "undecided": "undecided"}
    for one, two in zip(ahead, behind, strict=True):
        assert two["verdict"] == flipped[one["verdict"]]
        assert two["top1_difference_mean"] == pytest.approx(-one["top1_difference_mean"], abs=1e-9)
        if one["p"] is not None:
            mirrored = -two["top1_difference_high"], -two["top1_difference_low"]
            got = one["top1_difference_low"], one["top1_difference_high"]
            assert got == pytest.approx(mirrored, abs=1e-6)


@given(settings_of)
def test_the_interval_holds_the_mean_and_the_verdict_follows_from_it(settings):
    for row in claim_rows(many(settings)):
        if row["p"] is None:
            assert row["verdict"] == "undecided"
            few, same = ("n below 3: no interval" in row["note"], "all differences" in row["note"])
            assert few != same and (row["arch"] == "all" or few == (row["n"] < 3))
            continue
        low, high = row["top1_difference_low"], row["top1_difference_high"]
        assert low - 1e-9 <= row["top1_difference_mean"] <= high + 1e-9
        if row["verdict"] == "leads":
            assert low > -1e-9
        if row["verdict"] == "trails":
            assert high < 1e-9
        if row["verdict"] == "equal":
            assert -0.5 < low and high < 0.5


@given(settings_of, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(settings, shuffler: random.Random):
    table = many(settings)
    shuffled = list(table)
    shuffler.shuffle(shuffled)
    assert claim_rows(shuffled) == claim_rows(table)


def test_markdown_says_what_it_is():
    text = claims.markdown(claim_rows(made([61, 62], [60, 60])), "small")
    assert "nothing follows for full-length training" in text
    assert "undecided (n below 3: no interval)" in text
    assert text.count("Not tested by this suite.") == 2
