"""Exported networks in the results: the table, the plots, the gallery and the page."""

import base64
import csv
import io
import json
import shutil
from pathlib import Path

import fake_runs
import matplotlib.pyplot as plt
import numpy as np
import pytest
from figure_checks import assert_nothing_overlaps
from PIL import Image
from test_report import parse

from lowbit_core.datasets.manifest import read_labels, read_manifest
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import json_lines
from workflow.results import plots, report
from workflow.results.columns import read_table
from workflow.results.deployed import gallery, gather, table
from workflow.results.deployed import plots as deploy_plots
from workflow.results.labels import method_label, method_order
from workflow.results.plots import style
from workflow.results.plots.accuracy import pareto
from workflow.results.record import DEPLOYED, GALLERY, RUNS, Record, write_texts

REASON = "layer fc: a file cannot hold it & says <so>"
NAMES = ("table_deploy.csv", "table_deploy.md", "table_deploy.tex")


@pytest.fixture(scope="module")
def deployed(tmp_path_factory, digits_root) -> Path:
    """A suite of three networks whose runs were exported, with its plots and its page."""
    results = tmp_path_factory.mktemp("deployed")
    fake_runs.write_suite(results, dataset="digits")
    fake_runs.record_suite(results)
    fake_runs.make_tables(results)
    fake_runs.write_deployment(results, digits_root, REASON)
    plots.draw_plots(results)
    deploy_plots.main([str(results)])
    report.main([str(results), "--out", str(results / "index.html")])
    return results


@pytest.fixture(scope="module")
def many(tmp_path_factory, digits_root) -> Path:
    """One network with every method, exported."""
    results = tmp_path_factory.mktemp("many")
    fake_runs.write_every_method(results, "digits")
    fake_runs.make_tables(results)
    fake_runs.write_deployment(results, digits_root)
    return results


# -- the table -------------------------------------------------------------------------------


def test_every_run_has_a_row(deployed):
    rows = read_table(deployed / "table_deploy.csv")
    results = {row["run_id"]: row for row in read_table(deployed / "results.csv")}
    assert [row["run_id"] for row in rows] != sorted(row["run_id"] for row in rows)
    assert {row["run_id"] for row in rows} == set(results) and len(rows) == len(results)
    for row in rows:
        if row["export"] == "exported":
            assert row["top1_training"] == results[row["run_id"]]["top1"]
            assert row["difference"] is None  # 300 of the 360 test images
            compression = row["float32_bytes"] / row["file_bytes"]
            assert row["compression"] == pytest.approx(compression, rel=1e-4)
    assert rows[0]["method"] == "fp" and {row["arch"] for row in rows} == set(fake_runs.ARCHS)


def test_a_run_without_a_file_is_a_row_with_a_reason(deployed):
    rows = table.failures(read_table(deployed / "table_deploy.csv"))
    assert sorted(row["export"] for row in rows) == ["diverged", "refused"]
    for row in rows:
        assert row["reason"] in (REASON, "the loss is not finite")
        assert row["top1"] is row["ms"] is row["file_bytes"] is None
        text = (deployed / "table_deploy.md").read_text()
        assert f"`{row['run_id']}` ({row['export']}): {row['reason']}" in text


def test_text_tables_hold_every_run(deployed):
    rows = read_table(deployed / "table_deploy.csv")
    text = (deployed / "table_deploy.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == len(rows) + len(fake_runs.ARCHS)  # a header each
    latex = (deployed / "table_deploy.tex").read_text()
    ends = [line for line in latex.splitlines() if line.endswith(r" \\") and " & " in line]
    assert len(ends) == len(rows) + 1
    assert all(line.count(" & ") == len(table.HEADINGS) - 1 for line in ends)
    assert "300 test images" in text and r"\begin{longtable}" in latex


def test_a_difference_is_given_where_all_test_images_were_seen(deployed, tmp_path):
    shutil.copytree(deployed / "record", tmp_path / "record")
    path = tmp_path / "record" / DEPLOYED
    path.write_text(path.read_text().replace('"images": 300', '"images": 360'))
    (tmp_path / "record" / f".{DEPLOYED}.sha256").unlink()
    for row in table.deploy_rows(Record(tmp_path / "record")):
        if row["export"] == "exported":
            assert row["difference"] == row["top1"] - row["top1_training"]


def test_same_bytes_again_from_the_record(deployed, tmp_path):
    shutil.copytree(deployed / "record", tmp_path / "record")
    table.main([str(tmp_path)])
    deploy_plots.main([str(tmp_path)])
    paths = [
        *NAMES,
        *(f"plots/{name}.{kind}" for name in deploy_plots.PLOTS for kind in ("svg", "png")),
    ]
    for name in paths:
        assert (tmp_path / name).read_bytes() == (deployed / name).read_bytes(), name


# -- the record ------------------------------------------------------------------------------


def gathered(results: Path, data: Path, change, *options: str) -> None:
    """Gather again, from measurements whose lines `change` has changed."""
    path = results / "deploy" / "all.jsonl"
    path.write_text(change(path.read_text()))
    words = ["--record", str(results / "record"), "--measured", str(path), "--data", str(data)]
    gather.main([*words, "--runs", str(results / "runs"), *options])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: text.rindex("\n", 0, -1) + 1], "was not measured"),
        (lambda text: text.replace('"run_key": "', '"run_key": "0'), "before it was trained anew"),
        (lambda text: text[:-9], "all.jsonl holds no measurements"),
        (lambda text: "[]\n", "all.jsonl holds no measurements"),
    ],
)
def test_measurements_that_do_not_fit_are_refused(many, digits_root, tmp_path, change, message):
    shutil.copytree(many, tmp_path / "results")
    before = (tmp_path / "results" / "record" / DEPLOYED).read_bytes()
    with pytest.raises(InputError, match=message) as caught:
        gathered(tmp_path / "results", digits_root, change)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "results" / "record" / DEPLOYED).read_bytes() == before


@pytest.mark.parametrize("flags", [(True, False), (False, True)])
def test_a_record_can_be_measured_in_parts(many, digits_root, tmp_path, flags):
    """What is measured later is added; the weights of the runs before it are not needed again.

    In either order of the parts the whole is that of one measurement.
    """
    shutil.copytree(many, tmp_path / "results")
    record = tmp_path / "results" / "record"
    whole = {name: (record / name).read_bytes() for name in (DEPLOYED, GALLERY)}
    for name in whole:
        (record / name).unlink()
        (record / f".{name}.sha256").unlink()
    lines = (many / "deploy" / "all.jsonl").read_text().splitlines(keepends=True)
    # Images are chosen by the answers of full precision, too, so both are measured together.
    methods = {run["config"]["run_id"]: run["config"]["method"] for run in Record(record).trained}
    together = [methods[json.loads(line)["run_id"]] in ("fp", "direct") for line in lines]
    parts = [
        [line for line, is_first in zip(lines, together, strict=True) if is_first == flag]
        for flag in flags
    ]
    expected = 0
    for part in parts:
        gathered(tmp_path / "results", digits_root, lambda _, part=part: "".join(part), "--add")
        expected += len(part)
        assert len(Record(record).deployed) == expected
        table.main([str(tmp_path / "results")])
        assert len(read_table(tmp_path / "results" / "table_deploy.csv")) == expected
    assert (record / DEPLOYED).read_bytes() == whole[DEPLOYED]
    shown = json.loads(whole[GALLERY])
    shown["methods"].sort(key=lambda one: method_order(one["method"]))
    assert Record(record).gallery == shown and shown["methods"] and shown["networks"]


def test_what_was_measured_of_another_training_is_not_kept(many, digits_root, tmp_path):
    shutil.copytree(many, tmp_path / "results")
    record = tmp_path / "results" / "record"
    gone, *rest = (many / "deploy" / "all.jsonl").read_text().splitlines(keepends=True)
    run_id, accuracy = (json.loads(gone)[key] for key in ("run_id", "top1_training"))
    runs = (record / RUNS).read_text()
    of_run = next(line for line in runs.splitlines() if f'"run_id": "{run_id}"' in line)
    anew = of_run.replace(f'"top1": {accuracy}', f'"top1": {accuracy - 1}')
    assert anew != of_run
    (record / RUNS).write_text(runs.replace(of_run, anew))
    (record / f".{RUNS}.sha256").unlink()
    gathered(tmp_path / "results", digits_root, lambda _: "".join(rest), "--add")
    assert set(Record(record).deployed) == {json.loads(line)["run_id"] for line in rest}
    shown = Record(record).gallery
    entries = [one["run_id"] for one in shown["methods"] + shown["networks"]]
    assert entries and run_id not in entries


def test_what_was_measured_before_a_run_was_trained_anew_is_in_no_table(many, tmp_path):
    folder = Path(shutil.copytree(many / "record", tmp_path / "record"))
    rows = [json.loads(line) for line in (folder / "deploy.jsonl").read_text().splitlines()]
    old = next(row for row in rows if row["status"] == "exported")
    old["top1_training"] += 1
    write_texts(folder, {"deploy.jsonl": json_lines(rows)})
    found = {row["run_id"] for row in table.deploy_rows(Record(folder))}
    assert found == {row["run_id"] for row in rows} - {old["run_id"]}


def test_joined_galleries_show_what_one_would():
    """W2A2 before other bits, the newer of two entries of one run, and nothing that is gone."""

    def entry(method: str, bits: int, seed: int = 0, **more: object) -> dict:
        bits_of = {"w_bits": bits, "a_bits": bits, "seed": seed, "dataset": "digits", "arch": "a"}
        run_id = f"{method}-{bits}-{seed}"
        return {"run_id": run_id, "fp_run_id": "fp", "method": method, **bits_of, **more}

    earlier = {"methods": [entry("lsq", 2), entry("direct", 2)], "networks": [entry("direct", 2)]}
    new = {"methods": [entry("direct", 2, new=1)], "networks": [entry("direct", 2, new=1)]}
    wide = {"methods": [entry("direct", 4), entry("pact", 4), entry("lsq", 4)], "networks": []}
    ids = {"fp", *(f"{method}-{bits}-0" for method in ("direct", "lsq", "pact") for bits in (2, 4))}
    both = gallery.joined_galleries(earlier, new, ids)
    assert both["methods"] == [entry("direct", 2, new=1), entry("lsq", 2)]
    assert both["networks"] == [entry("direct", 2, new=1)]
    for pair in ((earlier, wide), (wide, earlier)):
        assert len(gallery.joined_galleries(*pair, ids)["methods"]) == 2
    assert gallery.joined_galleries(earlier, new, {"lsq-2-0"}) == {
        "methods": [entry("lsq", 2)],
        "networks": [],
    }


def test_measurements_of_another_suite_are_not_added(many, deployed, digits_root, tmp_path):
    shutil.copytree(many, tmp_path / "results")
    others = (deployed / "deploy" / "all.jsonl").read_text()
    with pytest.raises(InputError, match="has no run .*: name the record of its suite"):
        gathered(tmp_path / "results", digits_root, lambda _: others, "--add")


@pytest.mark.parametrize("name", [DEPLOYED, GALLERY])
def test_a_damaged_record_is_refused(many, tmp_path, name):
    shutil.copytree(many / "record", tmp_path / "record")
    (tmp_path / "record" / name).write_bytes((many / "record" / name).read_bytes()[:-30])
    part = "deployed" if name == DEPLOYED else "gallery"
    with pytest.raises(InputError, match="its checksum differs"):
        getattr(Record(tmp_path / "record"), part)
    (tmp_path / "record" / f".{name}.sha256").unlink()
    with pytest.raises(InputError, match="not part of a record"):
        getattr(Record(tmp_path / "record"), part)


def test_a_record_without_deployment_still_works(drawn, deployed):
    assert Record(drawn / "record").deployed == {}
    text = (drawn / "index.html").read_text()
    assert 'id="deployment"' not in text and "#deployment" not in text
    with pytest.raises(InputError, match="no measurements of exported runs"):
        table.main([str(drawn)])
    assert 'id="deployment"' in (deployed / "index.html").read_text()


# -- the gallery -----------------------------------------------------------------------------


def test_images_are_right_in_full_precision_and_wrong_in_few_bits(deployed, digits_root):
    gallery = Record(deployed / "record").gallery
    folder = digits_root / "digits"
    pixels, labels = np.load(folder / "test.npy"), read_labels(folder, "test")
    names = read_manifest(folder, "test")["class_names"]
    assert {one["arch"] for one in gallery["networks"]} == set(fake_runs.ARCHS)
    for network in gallery["networks"]:
        assert (network["method"], network["w_bits"], network["a_bits"]) == ("direct", 2, 2)
        assert 0 < len(network["images"]) <= network["found"] <= network["looked_at"] == 300
        for image in network["images"]:
            shown = Image.open(io.BytesIO(base64.b64decode(image["png"])))
            np.testing.assert_array_equal(np.array(shown), pixels[image["index"], 0])
            assert names[labels[image["index"]]] == image["true"] == image["fp"]
            assert image["quantized"] in names and image["quantized"] != image["true"]


def test_runs_measured_on_more_and_on_fewer_images(deployed, digits_root):
    """Only images that both have seen are looked at."""
    record = Record(deployed / "record")
    lines = (deployed / "deploy" / "all.jsonl").read_text().splitlines()
    measured = {row["run_id"]: row for row in map(json.loads, lines)}
    for run in record.trained:
        row, config = measured[run["config"]["run_id"]], run["config"]
        if "predictions" in row:
            row["predictions"] = row["predictions"][: 100 if config["method"] == "fp" else 200]
    shown = gallery.make_gallery(record, measured, deployed / "runs", digits_root)
    assert {one["looked_at"] for one in shown["networks"]} == {100}
    assert all(image["index"] < 100 for one in shown["networks"] for image in one["images"])


def test_levels_are_those_that_the_run_kept(deployed):
    [*methods] = Record(deployed / "record").gallery["methods"]
    assert {run["method"] for run in methods} == set(fake_runs.METHODS)
    assert {(run["arch"], run["seed"], run["w_bits"]) for run in methods} == {("resnet20", 0, 2)}
    for run in methods:
        with (deployed / "runs" / run["run_id"] / "weight_state.csv").open() as file:
            states = list(csv.DictReader(file))
        kept = json.loads(
            (deployed / "runs" / run["run_id"] / "weight_histograms.json").read_text()
        )
        assert [layer["layer"] for layer in run["levels"]] == list(kept)
        for layer in run["levels"]:
            mine = [row for row in states if row["layer"] == layer["layer"]]
            expected = [
                [int(r["epoch"]), float(r["level_min"]), float(r["level_max"])] for r in mine
            ]
            assert layer["epochs"] == expected
            assert layer["end"] == kept[layer["layer"]]["end"]["levels"]
        assert [name for name, _ in run["codes"]] == list(fake_runs.LAYERS)


def test_a_suite_without_full_precision_or_quantized_runs(tmp_path, digits_root):
    """Nothing can be compared, and every plot and the page are made all the same."""
    for name, method, bits in (("fp", "fp", (32, 32)), ("low", "pact", (2, 2))):
        results = tmp_path / name
        run = fake_runs.write_run(results / "runs", "resnet20", method, bits, 0, dataset="digits")
        (results / "jobs").mkdir()
        fake_runs.write_job(results / "jobs" / "a.jsonl", [(run, "run")])
        fake_runs.record_suite(results)
        fake_runs.make_tables(results)
        fake_runs.write_deployment(results, digits_root)
        assert Record(results / "record").gallery["networks"] == []
        plots.draw_plots(results)
        deploy_plots.main([str(results)])
        report.main([str(results), "--out", str(results / "index.html")])
        assert "No network has both" in (results / "index.html").read_text()
        drawn = [draw(deploy_plots.Data(results)) for _, draw in deploy_plots.PLOTS.values()]
        assert all(isinstance(one, str) for one in drawn) == (method == "fp")
        plt.close("all")


# -- the plots -------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["file_bytes", "ms"])
def test_points_are_the_means_of_the_table_and_the_front_is_theirs(deployed, column):
    setting = {"file_bytes": deploy_plots.FILE_SIZE, "ms": deploy_plots.LATENCY}[column]
    data = deploy_plots.Data(deployed)
    figure, _ = deploy_plots.accuracy_vs_measured(data, **setting)
    rows = [row for row in read_table(deployed / "table_deploy.csv")
            if row["export"] == "exported" and row["role"] == "run"]  # fmt: skip
    for axis, arch in zip(figure.axes, sorted(fake_runs.ARCHS), strict=True):
        found: dict[tuple, list[tuple[float, float]]] = {}
        for row in (row for row in rows if row["arch"] == arch):
            key = row["method"], row["w_bits"]
            found.setdefault(key, []).append((row[column], row["top1_training"]))
        means = {key: tuple(np.mean(points, 0)) for key, points in found.items()}
        lines = {line.get_label(): line for line in axis.get_lines()}
        for method in fake_runs.METHODS:
            line = lines[method_label(method)]
            expected = [means[key] for key in sorted(means) if key[0] == method]
            np.testing.assert_allclose(np.transpose(line.get_data()), expected, rtol=1e-4)
        front = lines["Pareto front"]
        points = pareto(means.values())
        assert len(points) >= 2
        np.testing.assert_allclose(np.transpose(front.get_data()), points, rtol=1e-4)
        everything = np.array([line.get_xydata()[0] for line in axis.get_lines()[1:]])
        assert np.isclose(everything, means["fp", 32], rtol=1e-4).all(1).any()
    plt.close(figure)


@pytest.mark.parametrize(
    ("low", "high"), [(0.041, 0.093), (1, 1.3), (10_000, 3e6), (5, 6), (3, 3e9)]
)
def test_an_axis_has_a_few_round_numbers(low, high):
    ticks = deploy_plots._round_numbers(low, high)
    assert len(ticks) <= deploy_plots.MOST_TICKS and ticks == sorted(ticks)
    assert all(low <= tick <= high for tick in ticks)


def test_nothing_covers_anything_with_many_methods(many):
    """Titles, legends and panels of every plot keep apart, inside the figure."""
    style.set_style()
    data = deploy_plots.Data(many)
    assert len(data.methods) > 12
    for title, draw in deploy_plots.PLOTS.values():
        assert_nothing_overlaps(draw(data), title)


# -- the page --------------------------------------------------------------------------------


def test_the_page_shows_the_deployment(deployed):
    text = (deployed / "index.html").read_text()
    page = parse(text)
    assert all(link.startswith(("#", "data:")) for link in page.resources)
    assert len(page.ids) == len(set(page.ids))
    assert {"deployment", *deploy_plots.PLOTS} <= set(page.ids)
    shown = sum(len(one["images"]) for one in Record(deployed / "record").gallery["networks"])
    assert text.count('alt="test image ') == shown
    assert "a file cannot hold it &amp; says &lt;so&gt;" in text
    assert "Torch in float32, times as long" in text


def test_the_page_is_the_same_again(deployed, tmp_path):
    report.main([str(deployed), "--out", str(tmp_path / "again.html")])
    assert (tmp_path / "again.html").read_bytes() == (deployed / "index.html").read_bytes()
