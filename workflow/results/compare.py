"""The one rule by which two methods are compared: paired differences, a t interval, a verdict.

Both methods are trained from the same checkpoint with the same seed; the differences of such pairs
are the sample. Its mean has a 95 % interval by Student's t, and the verdict follows from it:

- leads, trails: the interval excludes 0;
- equal: the interval lies within MARGIN points on either side of 0 (two one-sided tests);
- undecided: none of these, fewer than FEWEST pairs, or differences that are all the same, which do
  not tell how far they spread.

Where several comparisons answer one question, their p values are adjusted for their number first
(Holm 1979), so that one of many does not lead by chance.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean, stdev, variance

from scipy import stats

LEVEL = 0.05
MARGIN = 0.5  # points of top-1
FEWEST = 3  # pairs that an interval needs
DIGITS = 9  # of a difference: accuracies have three, so what is behind is rounding error


@dataclass(frozen=True)
class Pairs:
    """The runs of two methods that started from the same checkpoint with the same seed."""

    keys: list[tuple[int, str]]
    """(seed, checkpoint) of the pairs of which both runs finished, in rising order."""
    runs: list[tuple[dict, dict]]
    differences: list[float]
    diverged: int
    """Pairs in which the run of the first method did not finish; other_diverged: of the second."""
    other_diverged: int

    def only(self, keys: set[tuple[int, str]]) -> "Pairs":
        """The same without the pairs of other checkpoints."""
        chosen = [index for index, key in enumerate(self.keys) if key in keys]
        parts = ([part[i] for i in chosen] for part in (self.keys, self.runs, self.differences))
        return Pairs(*parts, self.diverged, self.other_diverged)


def pair_runs(runs: Iterable[dict], others: Iterable[dict], column: str = "top1") -> Pairs:
    """Pair runs (rows with `seed`, `pretrained`, `status`); take the differences of a column."""
    one, two = (
        {(run["seed"], run["pretrained"] or ""): run for run in rows} for rows in (runs, others)
    )
    both = sorted(one.keys() & two.keys())
    ended, other_ended = (
        {key for key in both if of[key]["status"] == "done" and of[key][column] is not None}
        for of in (one, two)
    )
    keys = sorted(ended & other_ended)
    pairs = [(one[key], two[key]) for key in keys]
    differences = [round(run[column] - other[column], DIGITS) for run, other in pairs]
    return Pairs(keys, pairs, differences, len(both) - len(ended), len(both) - len(other_ended))


@dataclass(frozen=True)
class Difference:
    """A mean difference with its interval; from `low` to `p_equal`: None where there is none."""

    n: int
    mean: float | None
    std: float | None
    """Sample standard deviation of the differences; None for one, or for several networks."""
    low: float | None = None
    high: float | None = None
    p: float | None = None
    """Of no difference, two-sided."""
    p_equal: float | None = None
    """Of a difference of MARGIN or more: below LEVEL exactly if the interval lies within MARGIN."""
    diverged: int = 0
    other_diverged: int = 0

    @property
    def columns(self) -> dict[str, float | None]:
        """The columns of a table."""
        names = ("mean", "std", "low", "high")
        found = {f"top1_difference_{name}": getattr(self, name) for name in names}
        return {**found, "p": self.p}


def difference(
    networks: list[list[float]], diverged: int = 0, other_diverged: int = 0
) -> Difference:
    """The mean of the networks' mean differences. networks: for each, its differences, in points.

    Several networks: standard error sqrt(sum s_i^2 / n_i) / k, degrees of freedom by Welch and
    Satterthwaite.
    """
    networks = [differences for differences in networks if differences]
    n = sum(map(len, networks))
    middle = mean(map(mean, networks)) if networks else None
    std = stdev(networks[0]) if len(networks) == 1 and n > 1 else None
    known = partial(Difference, n, middle, std, diverged=diverged, other_diverged=other_diverged)
    if min(map(len, networks), default=0) < FEWEST:
        return known()
    errors = [variance(differences) / len(differences) for differences in networks]
    error = math.sqrt(sum(errors)) / len(networks)
    if error == 0:  # all differences are the same
        return known()
    freedom = sum(errors) ** 2 / sum(
        e**2 / (len(differences) - 1) for e, differences in zip(errors, networks, strict=True)
    )
    half = error * float(stats.t.ppf(1 - LEVEL / 2, freedom))
    p = 2 * float(stats.t.sf(abs(middle) / error, freedom))
    p_equal = min(1.0, 2 * float(stats.t.sf((MARGIN - abs(middle)) / error, freedom)))
    return known(middle - half, middle + half, p, p_equal)


def holm(values: list[float]) -> list[float]:
    """The p values adjusted for their number by Holm's step-down method."""
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = highest
    return adjusted


def adjusted_verdicts(found: list[Difference]) -> list[tuple[float | None, str]]:
    """(adjusted p, verdict) of comparisons that answer one question together."""
    known = [index for index, one in enumerate(found) if one.p is not None]
    result: list[tuple[float | None, str]] = [(None, "undecided")] * len(found)
    unequal = holm([found[index].p for index in known])
    equal = holm([found[index].p_equal for index in known])
    for index, p, p_equal in zip(known, unequal, equal, strict=True):
        result[index] = p, verdict(replace(found[index], p=p, p_equal=p_equal))
    return result


def judge(rows: list[dict]) -> None:
    """Write the verdicts of rows that answer one question; `found` is the Difference of a row."""
    adjusted = adjusted_verdicts([row["found"] for row in rows])
    for row, (p, word) in zip(rows, adjusted, strict=True):
        row["p_adjusted"], row["verdict"] = p, word


def verdict(found: Difference) -> str:
    """The verdict; a method of which a run diverged leads nothing, and equals nothing."""
    if found.p is None:
        return "undecided"
    if found.p < LEVEL:
        if found.mean > 0 and not found.diverged:
            return "leads"
        if found.mean < 0 and not found.other_diverged:
            return "trails"
    is_equal = found.p_equal < LEVEL and not (found.diverged or found.other_diverged)
    return "equal" if is_equal else "undecided"
