"""The report: one self-contained page that says what the tables say."""

import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean

import pytest

from lowbit_core.runtime.errors import InputError
from workflow.results import plots, report
from workflow.results.columns import read_table, write_table
from workflow.results.report import summarize, tiles


class Page(HTMLParser):
    """Checks that tags close in order, and gathers what the page would fetch."""

    VOID = frozenset({"meta", "link", "input", "br", "img", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.resources: list[str] = []
        self.anchors: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(found["id"])
        for name in ("src", "href", "xlink:href", "data", "poster", "srcset"):
            if name in found:
                (self.anchors if tag == "a" else self.resources).append(found[name])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert not page.open
    return page


def chips(text: str) -> Counter:
    return Counter(re.findall(r'class="chip (\w+)"', text))


def test_the_page_is_self_contained(drawn: Path):
    path = drawn / "index.html"
    text = path.read_text()
    page = parse(text)
    assert all(link.startswith(("#", "data:")) for link in page.resources)
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)[a-z]", text)
    assert path.stat().st_size < 4_000_000
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.anchors if link.startswith("#")} <= set(page.ids)
    assert set(plots.PLOTS) <= set(page.ids)


def test_the_page_says_what_it_is(drawn: Path):
    text = (drawn / "index.html").read_text()
    for part in (
        "not comparable with published ones",
        "aria-sort",
        "addEventListener",
        'id="filter"',
        "light-dark(",
        "a tie is a finding",
        "Holm",
        "fashion_mnist-mobilenetv2-dorefa-w1a2",
        "snakemake results/ablation_channel_error.csv",
        "Example CPU, 2 cores",
    ):
        assert part in text
    assert 'class="failed"' in text  # the cell of the diverged run
    assert "Beside published" not in text


def test_same_bytes_again(drawn: Path, tmp_path: Path):
    report.main([str(drawn), "--out", str(tmp_path / "again.html")])
    assert (tmp_path / "again.html").read_bytes() == (drawn / "index.html").read_bytes()


def test_verdicts_are_those_of_the_tables(drawn: Path, tmp_path: Path):
    """The report computes none: other words in the tables are other words on the page."""
    shutil.copytree(drawn, tmp_path / "results")
    claims = read_table(drawn / "claims.csv")
    table = read_table(drawn / "table_main.csv")
    worst = min((row for row in table if row["n"]), key=lambda row: row["top1_mean"])
    for row in claims:
        row["verdict"] = "trails" if row["primary"] else "equal"
    for row in table:
        row["best"] = "yes" if row is worst else ""
    write_table(tmp_path / "results" / "claims.csv", claims)
    write_table(tmp_path / "results" / "table_main.csv", table)
    report.main([str(tmp_path / "results"), "--out", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    primary = sum(row["primary"] == "yes" for row in claims)
    # A primary row is in the headline and in its table.
    assert chips(text) == {"trails": 2 * primary, "equal": len(claims) - primary}
    [best] = re.findall(r'<td class="best"[^>]*>([^<]*)', text)
    assert best == report.accuracy(worst)


def test_every_row_of_the_claims_has_its_interval_and_n(drawn: Path):
    text = (drawn / "index.html").read_text()
    rows = read_table(drawn / "claims.csv")
    assert rows
    for row in rows:
        assert text.count(report.claims.difference_text(row)) >= 1 + (row["primary"] == "yes")
    assert f"n = {rows[0]['n']}" in text


def test_published_values_beside_ours(paper: Path):
    table = [r for r in read_table(paper / "table_main.csv") if r["published_top1"] is not None]
    columns, rows, _ = report.make_table(report.PUBLISHED, table)
    lq_nets = next(cells for cells in rows if "AlexNet (BN), W2A2 · LQ-Nets" in cells[0])
    found = dict(zip(columns, lq_nets, strict=True))
    assert found["Published"].value == 57.4
    assert found["Published"].text.startswith('<a href="https://github.com/microsoft/LQ-Nets')
    assert found["Difference"].value == pytest.approx(found["Ours"].value - 57.4, abs=2e-3)


def test_a_cell_is_escaped():
    row = {"method": "pact", "note": "<b>&", "verdict": "leads"}
    _, shown = report.CLAIMS["Verdict"]
    assert shown(row).endswith("&lt;b&gt;&amp;")


def test_a_suite_without_ablations_has_a_page(bare: Path):
    text = (bare / "index.html").read_text()
    parse(text)
    assert text.count("Not tested by this suite") >= 3


@pytest.mark.parametrize("name", ["claims.csv", "record/suite.json", "plots/mismatch.svg"])
def test_a_missing_file_is_one_sentence(drawn: Path, tmp_path: Path, name: str):
    shutil.copytree(drawn, tmp_path / "results")
    (tmp_path / "results" / name).unlink()
    with pytest.raises(InputError, match=f"{Path(name).name} is missing"):
        report.main([str(tmp_path / "results"), "--out", str(tmp_path / "page.html")])
    assert not (tmp_path / "page.html").exists()


def test_a_mean_of_whole_values_is_no_first_value():
    rows = [
        {"dataset": "d", "arch": "alexnet", "method": "pact", "w_bits": 2, "a_bits": 2}
        | {"seed": seed, "share": share}
        for seed, share in ((3, 1), (4, 1), (5, 0.7))
    ]
    (row,) = summarize(rows, mean, "dataset", "arch", "w_bits", "a_bits")
    assert row["share"] == pytest.approx(0.9)
    assert (row["w_bits"], row["seed"], row["runs"]) == (2, 3, 3)


def test_a_network_for_several_widths_is_one_run():
    rows = [{"run_id": name, "status": "diverged"} for name in ("a", "a.w1a2", "a.w2a2", "b")]
    found = tiles(rows, [], [{"run_id": "a", "seconds": 1}, {"run_id": "b", "seconds": 2}])
    assert found[0] == ("2", "runs, 2 of them diverged")
