"""The main table: its mathematics, its mark, the published values beside it, Markdown and LaTeX."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit_core.runtime.errors import InputError
from workflow.results import main_table
from workflow.results.claims import claim_rows
from workflow.results.columns import read_table
from workflow.results.labels import load_labels, method_names
from workflow.results.main_table import read_published

ROOT = Path(__file__).parents[2]
accuracies = st.integers(0, 100_000).map(lambda n: n / 1000)


def made(values: dict[str, list[float | None]]) -> list[dict]:
    """results.csv of one column, W2A2; None is a diverged seed."""
    return [
        {
            "suite": "quick", "dataset": "digits", "arch": "resnet20", "w_bits": 2, "a_bits": 2,
            "method": method, "seed": seed, "role": "run", "run_id": f"{method}-{seed}",
            "status": "diverged" if top1 is None else "done", "top1": top1,
            "delta": None if top1 is None else top1 - 90, "first_last": "fp", "shortcut": "fp",
            "pretrained": "checkpoint", "epochs": 200,
        }
        for method, top1s in values.items()
        for seed, top1 in enumerate(top1s)
    ]  # fmt: skip


def table_of(values: dict[str, list[float | None]]) -> dict[str, dict]:
    return {row["method"]: row for row in main_table.main_table(made(values), [])}


def test_mean_and_sample_std():
    row = table_of({"direct": [80.0, 82.0, 84.0]})["direct"]
    assert row["top1_mean"] == 82.0
    assert row["top1_std"] == 2.0  # ddof 1; ddof 0 would give 1.633
    assert row["n"] == 3
    assert row["delta_mean"] == -8.0


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ({"direct": [82, 83, 84.1], "pact": [80, 81, 82]}, "direct"),  # 2 ahead in every pair
        ({"direct": [84, 82, 83], "pact": [80, 81, 82]}, None),  # as far, but not in every pair
        ({"direct": [82, 83, 84.1], "pact": [80, 81, 82], "dorefa": [82, 82, 84]}, None),
        ({"direct": [83], "pact": [80]}, None),  # one pair tells nothing
        ({"direct": [82, 83, 84.1], "pact": [70]}, None),  # the rival has one seed
        ({"direct": [82, 83, 84.1, None], "pact": [80, 81, 82, 83]}, None),  # it diverged once
        ({"direct": [82, 83, 84.1]}, None),  # no rival
        ({"fp": [95, 95, 95], "direct": [82, 83, 84.1], "pact": [80, 81, 82]}, "direct"),
    ],
)
def test_marking_rule(values: dict, best: str | None):
    marked = [name for name, row in table_of(values).items() if row["best"]]
    assert marked == ([best] if best else [])


@given(st.lists(st.tuples(accuracies, accuracies), min_size=3, max_size=5))
def test_the_mark_and_the_claims_say_the_same(pairs):
    """Of two methods with one setting: the mark is a lead of the only comparison."""
    one, two = map(list, zip(*pairs, strict=True))
    results = made({"direct": one, "indirect": two})
    [claim] = claim_rows(results)
    marks = {row["method"]: row["best"] for row in main_table.main_table(results, [])}
    assert (marks["direct"] == "yes") == (claim["verdict"] == "leads")
    assert (marks["indirect"] == "yes") == (claim["verdict"] == "trails")


def test_diverged_cells():
    table = table_of({"direct": [None, None], "pact": [80.0, None]})
    assert main_table.measured_text(table["direct"]) == "diverged"
    assert main_table.measured_text(table["pact"]) == "80.00 (1, 1 diverged)"
    assert table["direct"]["top1_mean"] is None


def test_second_run_of_a_cell_is_refused():
    with pytest.raises(InputError, match="a second run"):
        main_table.main_table(made({"direct": [80.0]}) + made({"direct": [81.0]}), [])


# -- published values ------------------------------------------------------------------------


def test_published_file():
    published = read_published("paper")
    assert {row["dataset"] for row in published} == {"cifar100", "imagenet"}
    assert {row["method"] for row in published} <= set(method_names())
    assert all(0 < float(row["top1"]) < 100 for row in published)


def test_no_published_value_outside_the_paper_suite(quick: Path):
    assert all(row["published_top1"] is None for row in read_table(quick / "table_main.csv"))
    for kind in ("md", "tex"):
        text = (quick / f"table_main.{kind}").read_text()
        assert "http" not in text
        assert "quick" in text
        assert "LSQ" not in text
        assert "published values" not in text
    # The same data set and architectures, another suite: still none.
    assert read_published("small") == []
    suites = {path.stem for path in (ROOT / "config/suites").glob("paper*.yaml")}
    assert set(load_labels()["paper_suites"]) == suites


def published_row(method: str, top1: str, **policy: str) -> dict:
    return {
        "dataset": "digits", "arch": "resnet20", "method": method, "w_bits": 2, "a_bits": 2,
        "top1": top1, "first_last_layer": "", "shortcut": "", "pretrained": "", "epochs": "",
        "source_url": f"https://example.org/{top1}", "note": "", **policy,
    }  # fmt: skip


def test_difference_and_policy_beside_a_published_value():
    published = [
        published_row("pact", "80.5", first_last_layer="8 bit", shortcut="quantized",
                      pretrained="yes", epochs="90"),
        published_row("not_ours", "60.0", shortcut="quantized"),
        published_row("not_ours", "66.0", shortcut="full precision"),
    ]  # fmt: skip
    rows = main_table.main_table(made({"pact": [80.0, 82.0]}), published)
    pact, other = ({row["method"]: row for row in rows}[name] for name in ("pact", "not_ours"))
    assert pact["published_difference"] == 0.5
    assert pact["published_policy"] == (
        "first and last layer: ours full precision, theirs 8 bit; "
        "shortcut: ours full precision, theirs quantized; epochs: ours 200, theirs 90"
    )
    # Of two published rows, the one whose shortcuts are like ours.
    assert (other["published_top1"], other["published_difference"]) == ("66.0", None)
    assert other["published_policy"] == "not stated: first and last layer, pretrained, epochs"
    text = re.sub(" +", " ", main_table.markdown(rows, "paper"))
    assert "| PACT | 81.00 ± 1.41 (2) | [80.5](https://example.org/80.5) | +0.50 |" in text


def test_published_value_beside_its_source_in_the_paper_suite(paper: Path):
    table = read_table(paper / "table_main.csv")
    row = next(
        r
        for r in table
        if (r["arch"], r["method"], r["w_bits"], r["a_bits"]) == ("alexnet", "lq_nets", 2, 2)
    )
    assert row["published_top1"] == 57.4
    assert row["published_source"].startswith("https://github.com/microsoft/LQ-Nets")
    ours = [r for r in table if r["method"].startswith("direct")]
    assert ours and all(r["published_top1"] is None for r in ours)
    assert f"[[57.4]({row['published_source']})]" in (paper / "table_main.md").read_text()
    assert r"[57.4\textsuperscript{" in (paper / "table_main.tex").read_text()


def test_latex_is_escaped(paper: Path):
    text = (paper / "table_main.tex").read_text()
    body = re.sub(r"%.*Needs.*\n", "", text, count=1)
    assert main_table.tex("50% of a_b & c") == r"50\% of a\_b \& c"
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 3
    assert body.count("{") == body.count("}")
    assert not re.search(r"(?<!\\)%", body)
    for line in body.splitlines():
        if line.endswith(r"\\") and "multicolumn" not in line:
            assert line.count(" & ") == 3
