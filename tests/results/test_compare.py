"""The rule of comparison: against scipy, against values by hand, and what must always hold."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from workflow.results.compare import (
    FEWEST,
    LEVEL,
    MARGIN,
    Difference,
    adjusted_verdicts,
    difference,
    holm,
    pair_runs,
    verdict,
)

accuracies = st.integers(0, 100_000).map(lambda n: n / 1000)
samples = st.lists(st.integers(-3000, 3000).map(lambda n: n / 1000), min_size=1, max_size=8)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=8)
FLIPPED = {"leads": "trails", "trails": "leads", "equal": "equal", "undecided": "undecided"}


@given(st.lists(st.tuples(accuracies, accuracies), min_size=3, max_size=8))
def test_interval_and_p_are_those_of_a_paired_t_test(pairs):
    differences = [round(one - two, 9) for one, two in pairs]
    found = difference([differences])
    if len(set(differences)) == 1:
        return
    test = stats.ttest_1samp(differences, 0)
    low, high = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6, abs=1e-9)
    assert found.p == pytest.approx(stats.ttest_rel(*zip(*pairs, strict=True)).pvalue, abs=1e-6)


@given(samples)
def test_equal_is_the_interval_within_the_margin(values):
    found = difference([values])
    if len(values) < FEWEST:
        assert found.p is None and found.low is None and verdict(found) == "undecided"
        return
    if found.low is None:  # equal values have no spread
        assert len(set(values)) == 1 and verdict(found) == "undecided"
        return
    within = max(-found.low, found.high) < MARGIN
    if not math.isclose(max(-found.low, found.high), MARGIN, abs_tol=1e-9):
        assert (found.p_equal < LEVEL) == within
    if verdict(found) == "equal":
        assert -MARGIN < found.low <= 0 <= found.high < MARGIN


def test_golden_verdicts():
    """The differences of direct and direct_plain at W2A2 of the record: the range of three said
    `trails`; their t interval is -0.20 +- 0.22."""
    found = difference([[-0.10, -0.28, -0.21]])
    assert found.mean == pytest.approx(-0.197, abs=1e-3)
    assert max([-0.10, -0.28, -0.21]) < 0 < found.high
    assert verdict(found) == "equal"
    assert verdict(difference([[1.0, 1.2, 1.1]])) == "leads"
    assert verdict(difference([[-1.0, -1.2, -1.1]])) == "trails"
    assert verdict(difference([[0.1, -0.1, 0.0]])) == "equal"
    assert verdict(difference([[1, 2, 6]])) == "undecided"  # all positive, and yet too few
    assert verdict(difference([[1.0, 1.2]])) == "undecided"


@pytest.mark.parametrize("value", [0.0, 0.2, 3.0, -3.0])
def test_differences_without_variance_tell_no_interval(value):
    found = difference([[value] * 3])
    assert (found.mean, found.low, found.high, found.p) == (value, None, None, None)
    assert verdict(found) == "undecided"


def test_a_method_with_a_diverged_run_leads_nothing():
    assert verdict(difference([[1.0, 1.1, 1.2]], diverged=1)) == "undecided"
    assert verdict(difference([[1.0, 1.1, 1.2]], other_diverged=1)) == "leads"
    assert verdict(difference([[-1.0, -1.1, -1.2]], diverged=1)) == "trails"
    assert verdict(difference([[-1.0, -1.1, -1.2]], other_diverged=1)) == "undecided"
    assert verdict(difference([[0.0, 0.1, -0.1]], diverged=1)) == "undecided"


def test_several_networks_by_hand():
    """Means 1 and 3; s^2/n = 1/3 and 4/3: error sqrt(5/3)/2, freedom (5/3)^2 / ((1/9+16/9)/2)."""
    found = difference([[0, 1, 2], [1, 3, 5]])
    error, freedom = math.sqrt(5 / 3) / 2, (5 / 3) ** 2 / ((1 / 9 + 16 / 9) / 2)
    assert (found.n, found.mean, found.std) == (6, 2, None)
    assert found.high - found.mean == pytest.approx(error * stats.t.ppf(0.975, freedom))
    assert found.p == pytest.approx(2 * stats.t.sf(2 / error, freedom))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(p_values, st.randoms(use_true_random=False))
def test_holm_raises_every_value_and_keeps_their_order(values, shuffler: random.Random):
    adjusted = holm(values)
    assert all(value <= new <= 1 for value, new in zip(values, adjusted, strict=True))
    assert sorted(adjusted) == [new for _, new in sorted(zip(values, adjusted, strict=True))]
    order = list(range(len(values)))
    shuffler.shuffle(order)
    assert holm([values[i] for i in order]) == [adjusted[i] for i in order]


@given(st.lists(samples, min_size=1, max_size=6))
def test_swapping_the_methods_swaps_the_verdicts(many):
    ahead = [difference([values], 1, 0) for values in many]
    behind = [difference([[-value for value in values]], 0, 1) for values in many]
    for one, two in zip(ahead, behind, strict=True):
        assert verdict(two) == FLIPPED[verdict(one)]
        if one.p is not None:
            assert (two.low, two.high) == pytest.approx((-one.high, -one.low))
    for one, two in zip(adjusted_verdicts(ahead), adjusted_verdicts(behind), strict=True):
        assert two == (one[0], FLIPPED[one[1]])


def test_adjustment_takes_a_lead_away():
    """p = 0.04 alone leads; beside a comparison with p = 0.9 it is 0.08."""
    lead, other = (Difference(3, 1.0, 1.0, 0.1, 1.9, p, 1.0) for p in (0.04, 0.9))
    assert verdict(lead) == "leads"
    assert adjusted_verdicts([lead]) == [(0.04, "leads")]
    assert adjusted_verdicts([lead, other]) == [(0.08, "undecided"), (0.9, "undecided")]
    nothing = Difference(2, 1.0, 1.0)  # no p, no comparison
    assert adjusted_verdicts([nothing, lead]) == [(None, "undecided"), (0.04, "leads")]


def run(seed, top1, checkpoint="c"):
    status = "diverged" if top1 is None else "done"
    return {"seed": seed, "pretrained": f"{checkpoint}{seed}", "status": status, "top1": top1}


def test_runs_are_paired_by_checkpoint_and_seed():
    one = [run(2, 63.0), run(0, 61.0), run(1, None), run(3, 60.0), run(4, 60.0, "other")]
    two = [run(0, 60.0), run(1, 60.0), run(2, 60.5), run(3, None), run(4, 60.0)]
    pairs = pair_runs(one, two)
    assert pairs.keys == [(0, "c0"), (2, "c2")]
    assert pairs.differences == [1.0, 2.5]
    assert (pairs.diverged, pairs.other_diverged) == (1, 1)
    assert pair_runs(one[::-1], two[::-1]) == pairs
