"""Result tables, plots and report, on invented runs and hand-made numbers."""

import csv
import gzip
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import fake_runs
import pandas as pd
import pytest

from lowbit_core.runtime.errors import InputError
from workflow.results import claims, collect, plots, reference, report, tables

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "config" / "published.csv"
TABLES = (
    "results",
    "timings",
    "epochs",
    "diagnostics",
    "ablation_channel_error",
    "ablation_channel_error_summary",
    "ablation_direct_weights",
    "ablation_direct_weights_summary",
)


def run_collect(results: Path, suite: str = "quick") -> None:
    collect.main(
        [
            "--suite",
            suite,
            "--runs",
            str(results / "runs"),
            "--jobs",
            *sorted(map(str, (results / "jobs").glob("*.jsonl"))),
            "--results",
            str(results / "results.csv"),
            "--timings",
            str(results / "timings.csv"),
            "--epochs",
            str(results / "epochs.csv"),
            "--diagnostics",
            str(results / "diagnostics.csv"),
            "--histograms",
            str(results / "weight_histograms.json"),
            "--channel-error",
            str(results / "ablation_channel_error.csv"),
            "--channel-summary",
            str(results / "ablation_channel_error_summary.csv"),
            "--direct-weights",
            str(results / "ablation_direct_weights.csv"),
            "--direct-summary",
            str(results / "ablation_direct_weights_summary.csv"),
        ]
    )


def run_tables(results: Path) -> None:
    tables.main(
        [
            "--results",
            str(results / "results.csv"),
            "--published",
            str(PUBLISHED),
            "--out",
            str(results / "table_main"),
        ]
    )


def run_claims(results: Path) -> None:
    claims.main(["--results", str(results / "results.csv"), "--out", str(results / "claims")])


def run_plots(results: Path, out: str = "plots") -> None:
    plots.main(
        [
            "--results",
            str(results / "results.csv"),
            "--epochs",
            str(results / "epochs.csv"),
            "--histograms",
            str(results / "weight_histograms.json"),
            "--channel-error",
            str(results / "ablation_channel_error.csv"),
            "--direct-weights",
            str(results / "ablation_direct_weights.csv"),
            "--out",
            str(results / out),
        ]
    )


def run_report(results: Path, suite: str = "quick", out: str = "index.html") -> None:
    report.main(
        [
            "--suite",
            suite,
            "--results",
            str(results / "results.csv"),
            "--timings",
            str(results / "timings.csv"),
            "--tables",
            str(results / "table_main.csv"),
            "--claims",
            str(results / "claims.csv"),
            "--diagnostics",
            str(results / "diagnostics.csv"),
            "--channel-summary",
            str(results / "ablation_channel_error_summary.csv"),
            "--direct-summary",
            str(results / "ablation_direct_weights_summary.csv"),
            "--plots",
            str(results / "plots"),
            "--config",
            str(results / "config.json"),
            "--out",
            str(results / out),
        ]
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished quick suite with every output made."""
    results = tmp_path_factory.mktemp("quick")
    fake_runs.write_suite(results)
    run_collect(results)
    run_tables(results)
    run_claims(results)
    run_plots(results)
    run_report(results)
    return results


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of a paper suite."""
    results = tmp_path_factory.mktemp("paper")
    fake_runs.write_suite(results, dataset="imagenet")
    run_collect(results, "paper")
    run_tables(results)
    return results


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# The mathematics of the main table


def made(values: dict[str, list[float | None]]) -> pd.DataFrame:
    """results.csv of one column, W2A2; None is a diverged seed."""
    return pd.DataFrame(
        [
            {
                "suite": "quick",
                "dataset": "digits",
                "arch": "resnet20",
                "w_bits": 2,
                "a_bits": 2,
                "method": method,
                "seed": seed,
                "role": "run",
                "run_id": f"{method}-{seed}",
                "status": "diverged" if top1 is None else "done",
                "top1": top1,
                "delta": None if top1 is None else top1 - 90,
                "first_last": "fp",
                "shortcut": "fp",
                "pretrained": "checkpoint",
                "epochs": 200,
            }
            for method, top1s in values.items()
            for seed, top1 in enumerate(top1s)
        ]
    )


def table_of(values: dict[str, list[float | None]]) -> dict[str, dict]:
    return {row["method"]: row for row in tables.main_table(made(values), [])}


def test_mean_and_sample_std():
    row = table_of({"direct": [80.0, 82.0, 84.0]})["direct"]
    assert row["top1_mean"] == 82.0
    assert row["top1_std"] == 2.0  # ddof 1; ddof 0 would give 1.633
    assert row["n"] == 3
    assert row["delta_mean"] == -8.0


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ({"direct": [82, 83, 84], "pact": [80, 81, 82]}, "direct"),  # 2 ahead, std 1
        ({"direct": [82, 83, 84], "pact": [81, 82, 83]}, None),  # 1 ahead is not more than 1
        ({"direct": [82.9, 83, 83.1], "pact": [78, 82, 86]}, None),  # the rival's std counts
        ({"direct": [83], "pact": [80]}, None),  # one seed tells no spread
        ({"direct": [82, 83, 84], "pact": [70]}, None),  # rival has one seed
        ({"direct": [82, 83, None], "pact": [70, 71, 72]}, None),  # the leader diverged once
        ({"direct": [82, 83, 84]}, None),  # no rival
        ({"fp": [95, 95, 95], "direct": [82, 83, 84], "pact": [80, 81, 82]}, "direct"),
    ],
)
def test_marking_rule(values: dict, best: str | None):
    marked = [name for name, row in table_of(values).items() if row["best"]]
    assert marked == ([best] if best else [])


def test_diverged_cells():
    table = table_of({"direct": [None, None], "pact": [80.0, None]})
    assert tables.measured_text(table["direct"], "±") == "diverged"
    assert tables.measured_text(table["pact"], "±") == "80.00 (1, 1 diverged)"
    assert table["direct"]["top1_mean"] is None


def test_second_run_of_a_cell_is_refused():
    twice = pd.concat([made({"direct": [80.0]}), made({"direct": [81.0]})], ignore_index=True)
    with pytest.raises(InputError, match="a second run"):
        tables.main_table(twice, [])


def test_pareto():
    points = [(1, 80.0), (1, 81.0), (2, 79.0), (3, 85.0), (4, 85.0)]
    assert plots.pareto(points) == [(1, 81.0), (3, 85.0)]


# Collection


def test_results_of_the_suite(quick: Path):
    results = rows(quick / "results.csv")
    assert list(results[0]) == collect.RESULT_COLUMNS
    runs = {row["run_id"] for row in results}
    assert len(runs) == len(results) == len(list((quick / "runs").iterdir()))
    failed = [row for row in results if row["status"] == "diverged"]
    assert [(row["arch"], row["method"], row["top1"]) for row in failed] == [
        ("mobilenetv2", "dorefa", "")
    ]
    assert {row["role"] for row in results} == {"run", "ablation", "checkpoint"}
    for row in results:
        if row["role"] == "run" and row["status"] == "done":
            assert float(row["delta"]) == pytest.approx(
                float(row["top1"]) - float(row["fp_top1"]), abs=2e-3
            )
    sign = next(row for row in results if row["method"] == "direct")
    assert sign["weight_granularity"] == "per_channel"
    assert sign["quantizer_lr_scale"] == "codes=1;levels=0.1"


def test_full_precision_reference_is_the_fine_tuned_run(quick: Path):
    results = rows(quick / "results.csv")
    mine = [r for r in results if r["arch"] == "resnet20" and r["seed"] == "1"]
    tuned = next(r for r in mine if r["method"] == "fp" and r["role"] == "run")
    checkpoint = next(r for r in mine if r["role"] == "checkpoint")
    direct = next(r for r in mine if r["method"] == "direct")
    assert direct["fp_top1"] == tuned["top1"] != checkpoint["top1"]
    assert direct["checkpoint_top1"] == checkpoint["top1"]


def test_same_bytes_again(quick: Path, tmp_path: Path):
    before = {name: (quick / f"{name}.csv").read_bytes() for name in TABLES}
    before_table = [(quick / f"table_main.{kind}").read_bytes() for kind in ("csv", "md", "tex")]
    page = (quick / "index.html").read_bytes()
    svg = {path.name: path.read_bytes() for path in (quick / "plots").iterdir()}
    assert set(svg) == {f"{name}.{kind}" for name in report.PLOTS for kind in ("svg", "png")}
    # A process of its own: hash seeds and import order differ.
    again = tmp_path / "again"
    shutil.copytree(quick, again)
    jobs = sorted(map(str, (again / "jobs").glob("*.jsonl")), reverse=True)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "workflow.results.collect",
            "--suite",
            "quick",
            "--runs",
            str(again / "runs"),
            "--jobs",
            *jobs,
            "--results",
            str(again / "results.csv"),
        ],
        cwd=ROOT,
        check=True,
    )
    assert (again / "results.csv").read_bytes() == before["results"]
    run_collect(again)
    assert {name: (again / f"{name}.csv").read_bytes() for name in TABLES} == before
    run_tables(again)
    assert [(again / f"table_main.{k}").read_bytes() for k in ("csv", "md", "tex")] == before_table
    run_plots(again)
    assert {path.name: path.read_bytes() for path in (again / "plots").iterdir()} == svg
    run_report(again)
    assert (again / "index.html").read_bytes() == page


def test_channel_ablation_alone_and_its_summary(quick: Path, tmp_path: Path):
    out = tmp_path / "channel.csv"
    jobs = sorted(map(str, (quick / "jobs").glob("*.jsonl")))
    collect.main(
        [
            "--suite",
            "quick",
            "--runs",
            str(quick / "runs"),
            "--jobs",
            *jobs,
            "--channel-error",
            str(out),
        ]
    )
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"channel.csv", ".channel.csv.sha256"}
    assert out.read_bytes() == (quick / "ablation_channel_error.csv").read_bytes()
    channels = rows(out)
    dead = [row for row in channels if not row["error_equal"]]
    assert dead and all(row["channel"] == "31" for row in dead)

    summary = rows(quick / "ablation_channel_error_summary.csv")
    row = next(
        r
        for r in summary
        if (r["arch"], r["method"], r["w_bits"], r["variant"])
        == ("resnet20", "direct", "2", "inverse_variance")
    )
    mine = [
        r
        for r in channels
        if r["error_equal"] and (r["arch"], r["method"], r["w_bits"]) == ("resnet20", "direct", "2")
    ]
    better = [r for r in mine if float(r["error_inverse_variance"]) < float(r["error_equal"])]
    assert int(row["channels"]) == len(mine) == 3 * 63
    assert float(row["share_of_channels_improved"]) == pytest.approx(
        100 * len(better) / len(mine), abs=1e-3
    )
    assert (row["trained_with"], row["top1_n"]) == ("direct", "3")


def test_direct_ablation_is_paired_by_seed(quick: Path):
    runs = rows(quick / "ablation_direct_weights.csv")
    top1 = {(r["method"], r["seed"]): float(r["top1"]) for r in runs if r["w_bits"] == "2"}
    gaps = pd.Series([top1["direct", s] - top1["indirect", s] for s in "012"])
    row = next(
        r
        for r in rows(quick / "ablation_direct_weights_summary.csv")
        if r["w_bits"] == "2" and r["other"] == "indirect"
    )
    assert row["n"] == "3"
    assert float(row["top1_difference_mean"]) == pytest.approx(gaps.mean(), abs=1e-3)
    assert float(row["top1_difference_std"]) == pytest.approx(gaps.std(ddof=1), abs=1e-3)
    assert all(float(r["used_level_share"]) == 1 for r in runs)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [("final.json", None, "is missing"), ("final.json", "{", "not valid JSON")],
)
def test_incomplete_run_is_one_sentence(tmp_path: Path, file: str, text: str | None, message: str):
    run = fake_runs.write_run(tmp_path / "runs", "resnet20", "direct", (2, 2), 0)
    if text is None:
        (tmp_path / "runs" / run / file).unlink()
    else:
        (tmp_path / "runs" / run / file).write_text(text)
    with pytest.raises(InputError, match=message):
        collect.collect_results("quick", tmp_path / "runs", {run: "run"})


def test_bad_job_line(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"run_id": "x", "role": "walk", "runs": 1}) + "\n")
    with pytest.raises(InputError, match="'walk' must be one of run, ablation, checkpoint"):
        collect.read_jobs([str(path)])
    path.write_text("{nonsense\n")
    with pytest.raises(InputError, match="line 1"):
        collect.read_jobs([str(path)])


# The committed record


BASE = ("results.csv", "timings.csv", "diagnostics.csv", "ablation_direct_weights.csv",
        "ablation_channel_error_summary.csv", "ablation_direct_weights_summary.csv")  # fmt: skip
DERIVED = ("table_main.csv", "table_main.md", "claims.csv", "claims.md")


@pytest.fixture
def recorded(quick: Path, tmp_path: Path) -> Path:
    """The record of the quick suite, in a place without its runs."""
    roles = collect.read_jobs(sorted((quick / "jobs").glob("*.jsonl")))
    config = json.loads((quick / "config.json").read_text())
    reference.write_reference("quick", config, roles, quick / "runs", tmp_path / "quick")
    (tmp_path / "quick" / reference.SUITE).write_text(json.dumps(config))
    return tmp_path / "quick"


def test_tables_and_plots_from_the_record_alone_are_the_same_bytes(quick, recorded, tmp_path):
    reference.make_tables(recorded, tmp_path / "made")
    for name in (*BASE, *DERIVED):
        assert (recorded / name).read_bytes() == (quick / name).read_bytes(), name
    for path in (quick / "plots").iterdir():
        assert (tmp_path / "made" / "plots" / path.name).read_bytes() == path.read_bytes(), path
    assert (tmp_path / "made" / "index.html").read_bytes() == (quick / "index.html").read_bytes()
    records = [json.loads(line) for line in (recorded / "runs.jsonl").read_text().splitlines()]
    assert len(records) == len(list((quick / "runs").iterdir()))
    for record in records:
        assert {"seed", "recipe", "code_version", "policy"} <= record["config"].keys()
        assert {"hardware", "versions", "git_commit", "top1", "created"} <= record["final"].keys()
    epochs = gzip.decompress((recorded / reference.EPOCHS).read_bytes())
    assert epochs == (quick / "epochs.csv").read_bytes()
    assert sum(path.stat().st_size for path in recorded.iterdir()) < 1_000_000


@pytest.mark.parametrize(
    "folder", sorted((ROOT / reference.REFERENCE).glob("*/runs.jsonl")), ids=lambda p: p.parent.name
)
def test_committed_tables_are_what_the_committed_runs_give(folder, tmp_path):
    shutil.copytree(folder.parent, tmp_path / "record")
    reference.make_tables(tmp_path / "record", tmp_path / "made")
    for name in (name for name in (*DERIVED, "variants.csv", "variants.md")
                 if (folder.parent / name).exists()):  # fmt: skip
        assert (tmp_path / "record" / name).read_text() == (folder.parent / name).read_text()
    assert sum(path.stat().st_size for path in folder.parent.iterdir()) < 1_000_000


def test_a_record_that_was_changed_is_refused(recorded, tmp_path):
    def refused(name: str, change, message: str) -> None:
        whole = (recorded / name).read_bytes()
        (recorded / name).write_bytes(change(whole))
        with pytest.raises(InputError, match=message):
            reference.make_tables(recorded, tmp_path / "made")
        (recorded / name).write_bytes(whole)

    refused("results.csv", lambda data: data.replace(b"8", b"9", 1), "checksum")
    refused("runs.jsonl", lambda data: data.replace(b'"seed": 1', b'"seed": 7', 1), "run .* is")
    refused("runs.jsonl", lambda data: data[:-40], "not a record of runs")
    refused("epochs.csv.gz", lambda data: data[:-40], "cannot be read")


def test_a_damaged_run_is_not_recorded(tmp_path):
    run = fake_runs.write_run(tmp_path / "runs", "resnet20", "direct", (2, 2), 0)
    (tmp_path / "runs" / run / "metrics.csv").write_text("epoch\n")
    with pytest.raises(InputError, match="not what was written"):
        reference.write_reference("quick", {}, {run: "run"}, tmp_path / "runs", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Diagnostics


def test_diagnostics_of_a_run_by_hand(tmp_path):
    """Two layers whose levels grow to twice and to half of their span; flips 40 % and 20 %."""
    rows = [
        (0, "a", 0.1, "", -1, 1, 1.0), (0, "b", 0.3, "", -2, 2, 1.0),
        (1, "a", 0.2, 0.5, -2, 2, 0.5), (1, "b", 0.4, 0.3, -1, 1, 1.0),
    ]  # fmt: skip
    header = "epoch,layer,mismatch,flip_rate,level_min,level_max,used_levels"
    fake_runs.write_rows(tmp_path / "weight_state.csv", header, rows)
    facts = collect.weight_facts(tmp_path)
    assert facts == pytest.approx(
        {
            "mismatch_start": 0.2, "mismatch_end": 0.3, "flip_rate_mean": 0.4,
            "flip_rate_first": 0.4, "flip_rate_end": 0.4, "used_level_share": 0.75,
            "used_level_share_lowest": 0.5, "level_span": 1.25,
        }
    )  # fmt: skip


def test_diagnostics_count_dead_channels_and_keep_diverged_runs(quick):
    found = rows(quick / "diagnostics.csv")
    quantized = [r for r in rows(quick / "results.csv") if r["w_bits"] != "32"]
    assert len(found) == len(quantized)
    assert [r["method"] for r in found if r["status"] == "diverged"] == ["dorefa"]
    measured = {r["method"]: r["dead_channel_share"] for r in found}
    assert float(measured["direct"]) == pytest.approx(1 / 64)
    assert measured["pact"] == ""


# Published values


def test_published_file():
    published = tables.read_published(PUBLISHED, "paper")
    assert {row["dataset"] for row in published} == {"cifar100", "imagenet"}
    methods = {row["method"] for row in published}
    assert methods <= {"fp", "dorefa", "pact", "lq_nets", *tables.PUBLISHED_ONLY}
    assert all(0 < float(row["top1"]) < 100 for row in published)


def test_no_published_value_outside_the_paper_suite(quick: Path):
    assert all(not row["published_top1"] for row in rows(quick / "table_main.csv"))
    for kind in ("md", "tex"):
        text = (quick / f"table_main.{kind}").read_text()
        assert "http" not in text
        assert "quick" in text
        assert "LSQ" not in text
        assert "published values" not in text
    assert "Beside published" not in (quick / "index.html").read_text()
    # The same data set and architectures, another suite: still none.
    assert tables.read_published(PUBLISHED, "small") == []
    assert set(tables.PAPER_SUITES) == {
        p.stem for p in (ROOT / "config/suites").glob("paper*.yaml")
    }


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
        published_row("lsq", "60.0", shortcut="quantized"),
        published_row("lsq", "66.0", shortcut="full precision"),
    ]  # fmt: skip
    rows_of = tables.main_table(made({"pact": [80.0, 82.0]}), published)
    pact, lsq = ({row["method"]: row for row in rows_of}[name] for name in ("pact", "lsq"))
    assert pact["published_difference"] == 0.5
    assert pact["published_policy"] == (
        "first and last layer: ours full precision, theirs 8 bit; "
        "shortcut: ours full precision, theirs quantized; epochs: ours 200, theirs 90"
    )
    # Of two published rows, the one whose shortcuts are like ours.
    assert (lsq["published_top1"], lsq["published_difference"]) == ("66.0", None)
    assert lsq["published_policy"] == "not stated: first and last layer, pretrained, epochs"
    text = tables.markdown(rows_of, "paper")
    assert "| PACT | 81.00 ± 1.41 (2) | [80.5](https://example.org/80.5) | +0.50 |" in text


def test_published_value_beside_its_source_in_the_paper_suite(paper: Path):
    table = rows(paper / "table_main.csv")
    row = next(
        r
        for r in table
        if (r["arch"], r["method"], r["w_bits"], r["a_bits"]) == ("alexnet", "lq_nets", "2", "2")
    )
    assert row["published_top1"] == "57.4"
    assert row["published_source"].startswith("https://github.com/microsoft/LQ-Nets")
    ours = [r for r in table if r["method"].startswith("direct")]
    assert ours and all(not r["published_top1"] for r in ours)
    assert f"[[57.4]({row['published_source']})]" in (paper / "table_main.md").read_text()
    assert r"[57.4\textsuperscript{" in (paper / "table_main.tex").read_text()


def test_latex_is_escaped(paper: Path):
    text = (paper / "table_main.tex").read_text()
    body = re.sub(r"%.*Needs.*\n", "", text, count=1)
    assert tables.tex("50% of a_b & c") == r"50\% of a\_b \& c"
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 3
    assert body.count("{") == body.count("}")
    assert not re.search(r"(?<!\\)%", body)
    for line in body.splitlines():
        if line.endswith(r"\\") and "multicolumn" not in line:
            assert line.count(" & ") == 3


# Report


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
        if "id" in found:
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


def parse(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    page.close()
    assert not page.open
    return page


def test_report_is_self_contained(quick: Path):
    path = quick / "index.html"
    page, text = parse(path), path.read_text()
    assert all(link.startswith(("#", "data:")) for link in page.resources)
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)[a-z]", text)
    assert path.stat().st_size < 4_000_000
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.anchors if link.startswith("#")} <= set(page.ids)
    assert set(report.PLOTS) <= set(page.ids)


def test_report_says_what_it_is(quick: Path):
    text = (quick / "index.html").read_text()
    assert "not comparable with published ones" in text
    assert "aria-sort" in text and "addEventListener" in text
    assert 'id="filter"' in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("diverged") >= 2
    assert "fashion_mnist-mobilenetv2-dorefa-w1a2" in text
    assert "snakemake results/ablation_channel_error.csv" in text


def test_verdicts_follow_the_numbers():
    clear, none = [("A", 1.0, 0.2), ("B", 0.1, 0.3)], [("A", 0.1, 0.3), ("B", 2.0, None)]
    assert "supported" in report.compare(clear, "x", "y")["chip"]
    assert "not supported" in report.compare(none, "x", "y")["chip"]
    assert "single seed" in report.compare(none, "x", "y")["text"]
    assert "mixed" in report.compare([*clear, ("C", -1.0, 0.2)], "x", "y")["chip"]
    assert "not supported" in report.compare([("C", -1.0, 0.2)], "x", "y")["chip"]
    assert report.compare([], "x", "y")["chip"] == "Not tested by this run"


def test_report_of_a_bare_suite(tmp_path: Path):
    """One full-precision and one quantized run, no ablation: every output is still made."""
    runs = tmp_path / "runs"
    checkpoint = fake_runs.write_run(runs, "resnet20", "fp", (32, 32), 0)
    lines = [(checkpoint, "checkpoint")]
    for method, bits in (("fp", (32, 32)), ("pact", (2, 2))):
        run = fake_runs.write_run(runs, "resnet20", method, bits, 0, pretrained=checkpoint)
        lines.append((run, "run"))
    (tmp_path / "jobs").mkdir()
    fake_runs.write_job(tmp_path / "jobs" / "a.jsonl", lines)
    (tmp_path / "config.json").write_text("{}")
    run_collect(tmp_path, "smoke")
    run_tables(tmp_path)
    run_claims(tmp_path)
    run_plots(tmp_path)
    run_report(tmp_path, "smoke")
    parse(tmp_path / "index.html")
    assert "not tested by this run" in (tmp_path / "index.html").read_text().lower()


def test_report_of_another_suite_is_refused(quick: Path):
    with pytest.raises(InputError, match="holds suite 'quick', not 'paper'"):
        run_report(quick, "paper")
