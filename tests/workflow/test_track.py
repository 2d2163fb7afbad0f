"""Tracking: idempotent, complete under parallel writers, live, and harmless when it fails."""

import http.client
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import fake_runs
import psutil
import pytest

from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.run_folder import RunFolder
from workflow import mlflow_ui, track
from workflow.track import Store, TrackedRun, Watcher

ROOT = Path(track.__file__).parent.parent
EPOCHS = fake_runs.EPOCHS


@pytest.fixture(scope="module")
def made_store(tmp_path_factory):
    """An empty store (making its tables takes seconds) and where it was made."""
    store = Store(tmp_path_factory.mktemp("made") / "mlflow")
    with store.client() as client:
        client.search_experiments()
    return store


@pytest.fixture
def store(made_store, tmp_path):
    shutil.copytree(made_store.folder, tmp_path / "mlflow")
    return Store(tmp_path / "mlflow")


def write_run(runs: Path, method="direct", seed=0, **options) -> TrackedRun:
    run_id = fake_runs.write_run(runs, "resnet20", method, (2, 2), seed, **options)
    return TrackedRun(runs / run_id, "run")


def set_epochs(folder: Path, epochs: int, full: dict[str, str]) -> None:
    """Leave the tables as they were after `epochs` epochs, and no final record."""
    for name, text in full.items():
        lines = text.splitlines(keepends=True)[: epochs + 1]
        (folder / name).write_text("".join(lines))
    (folder / "final.json").unlink(missing_ok=True)


def tables(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in ("metrics.csv", "timings.csv")}


def query(store: Store, sql: str) -> list[tuple]:
    return sqlite3.connect(store.folder / "mlflow.db").execute(sql).fetchall()


def steps(store: Store, key: str = "val_top1") -> list[int]:
    return [s for (s,) in query(store, f"select step from metrics where key='{key}' order by step")]


def tags(store: Store) -> dict[str, str]:
    return dict(query(store, "select key, value from tags"))


def test_a_finished_run_is_tracked_whole(store, tmp_path):
    run = write_run(tmp_path / "runs")
    data = tmp_path / "data" / "fashion_mnist"
    data.mkdir(parents=True)
    for split in ("train", "test"):
        (data / f"{split}.manifest.json").write_text(
            json.dumps({"images": 100, "class_counts": [10] * 10, "samples_sha256": "ab" * 32})
        )
    plot = tmp_path / "plot.png"
    plot.write_bytes(b"png")
    assert track.sync(store, "smoke", [run], tmp_path / "data", [plot]) == 1

    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store.uri)
    experiment = client.get_experiment_by_name("smoke")
    assert experiment.artifact_location == store.artifacts("smoke")
    found = {r.data.tags["run_key"]: r for r in client.search_runs([experiment.experiment_id])}
    report = found.pop("report-smoke")
    [tracked] = found.values()
    config = json.loads((run.folder / "config.json").read_text())
    final = json.loads((run.folder / "final.json").read_text())
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["recipe.quantizer_groups.levels.lr_scale"] == "0.1"
    assert tracked.data.params["policy.exceptions"] == "{}"
    assert tracked.data.metrics["test_top1"] == final["top1"]
    expected = {
        "suite": "smoke",
        "method": "direct",
        "bits": "W2A2",
        "seed": "0",
        "run_key": config["run_key"],
        "status": "done",
        "git_commit": "0" * 40,
    }
    assert expected.items() <= tracked.data.tags.items()
    history = client.get_metric_history(tracked.info.run_id, "train_loss")
    assert [point.step for point in history] == list(range(1, EPOCHS + 1))
    assert {d.dataset.name for d in tracked.inputs.dataset_inputs} == {
        "fashion_mnist/train",
        "fashion_mnist/test",
    }
    artifacts = {a.path for a in client.list_artifacts(tracked.info.run_id)}
    assert {"config.json", "metrics.csv", "layers.json", "weight_state.csv"} <= artifacts
    assert [a.path for a in client.list_artifacts(report.info.run_id)] == ["plot.png"]


def test_a_suite_that_chooses_on_validation_images_shows_nothing_of_the_test_images(
    store, tmp_path
):
    run = write_run(tmp_path / "runs")._replace(hides_test=True)
    (run.folder / "widths.csv").write_text("w_bits,a_bits,top1\n1,1,50\n")
    track.sync(store, "smoke", [run], tmp_path)
    names = {name for (name,) in query(store, "select distinct key from metrics")}
    assert "val_top1" in names and not names & {"test_top1", "test_top5", "test_loss"}
    assert not list((store.folder / "artifacts").rglob("final.json"))
    assert not list((store.folder / "artifacts").rglob("widths.csv"))
    assert list((store.folder / "artifacts").rglob("config.json"))


@pytest.mark.parametrize(
    ("suite", "is_hidden"), [("smoke", False), ("claims_choices", True), ("deleted", True)]
)
def test_the_suite_says_whether_test_images_are_shown(suite, is_hidden, store, tmp_path):
    """For the command, and for a sweep whose list of runs is of a version that did not say it."""
    run = write_run(tmp_path / "runs")
    fake_runs.write_job(tmp_path / "job.jsonl", [(run.folder.name, "run")])
    (found,) = track.job_runs(suite, [tmp_path / "job.jsonl"], tmp_path / "runs")
    assert found == run._replace(hides_test=is_hidden)
    listed = {"suite": {"suite": suite}, "runs": [{"run_id": run.folder.name, "role": "run"}]}
    (tmp_path / "config.json").write_text(json.dumps(listed))
    Watcher(store, tmp_path / "runs", tmp_path / "data").look()
    names = {name for (name,) in query(store, "select distinct key from metrics")}
    assert ("test_top1" not in names) == is_hidden and "val_top1" in names


def test_a_second_sync_adds_nothing(store, tmp_path):
    runs = [write_run(tmp_path / "runs", method) for method in ("direct", "pact")]
    plot = tmp_path / "plot.png"
    plot.write_bytes(b"png")
    counts = []
    for expected in (2, 0):
        assert track.sync(store, "smoke", runs, tmp_path, [plot]) == expected
        counts.append(
            [
                query(store, f"select count(*) from {t}")
                for t in ("runs", "metrics", "params", "tags", "inputs")
            ]
        )
    assert counts[0] == counts[1]


def test_a_running_run_is_live_and_gets_only_new_epochs(store, tmp_path):
    run = write_run(tmp_path / "runs")
    full, final = tables(run.folder), (run.folder / "final.json").read_text()
    set_epochs(run.folder, 0, full)
    track.sync(store, "smoke", [run], tmp_path)
    assert query(store, "select status from runs") == [("RUNNING",)]
    for epochs in (2, 2, 3):
        set_epochs(run.folder, epochs, full)
        track.sync(store, "smoke", [run], tmp_path)
        assert steps(store) == list(range(1, epochs + 1))
    assert query(store, "select status from runs") == [("RUNNING",)]
    set_epochs(run.folder, EPOCHS, full)
    (run.folder / "final.json").write_text(final)
    track.sync(store, "smoke", [run], tmp_path)
    assert steps(store) == list(range(1, EPOCHS + 1))
    assert steps(store, "test_top1") == [EPOCHS]
    assert query(store, "select status from runs") == [("FINISHED",)]


def test_a_sync_killed_midway_is_continued_without_duplicates(store, tmp_path, monkeypatch):
    run = write_run(tmp_path / "runs")
    with monkeypatch.context() as patch:
        patch.setattr(track, "_data_sets", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            track.sync(store, "smoke", [run], tmp_path)
    # The worst moment: metrics are in, the note that they are is not.
    with sqlite3.connect(store.folder / "mlflow.db") as database:
        database.execute("delete from tags where key='epochs_logged'")
    track.sync(store, "smoke", [run], tmp_path)
    assert steps(store) == list(range(1, EPOCHS + 1))
    assert query(store, "select status from runs") == [("FINISHED",)]


def test_a_half_written_line_waits_for_its_end(store, tmp_path):
    run = write_run(tmp_path / "runs")
    full = tables(run.folder)
    set_epochs(run.folder, 3, full)
    whole = (run.folder / "metrics.csv").read_text()
    (run.folder / "metrics.csv").write_text(whole[:-3])  # "3,0.05,...,9" without its newline
    track.sync(store, "smoke", [run], tmp_path)
    assert steps(store) == [1, 2]
    (run.folder / "metrics.csv").write_text(whole)
    track.sync(store, "smoke", [run], tmp_path)
    assert steps(store) == [1, 2, 3]
    [(value,)] = query(store, "select value from metrics where key='val_top1' and step=3")
    assert value == float(whole.splitlines()[-1].split(",")[-1])


def test_a_run_that_began_again_has_all_epochs_of_its_last_attempt(store, tmp_path):
    run = write_run(tmp_path / "runs")
    full, final = tables(run.folder), json.loads((run.folder / "final.json").read_text())
    set_epochs(run.folder, 2, full)
    track.sync(store, "smoke", [run], tmp_path)
    again = {name: text.replace("0.05", "0.025") for name, text in full.items()}
    assert again != full
    set_epochs(run.folder, 1, again)
    track.sync(store, "smoke", [run], tmp_path)
    set_epochs(run.folder, EPOCHS, again)
    RunFolder(run.folder).finish(final | {"diverged_before": [{"epoch": 2, "lr": 0.05}]})
    track.sync(store, "smoke", [run], tmp_path)
    of_attempt = query(store, "select step from metrics where key='lr' and value=0.025")
    assert sorted({step for (step,) in of_attempt}) == list(range(1, EPOCHS + 1))


def test_a_diverged_run_is_finished_and_says_so(store, tmp_path):
    run = write_run(tmp_path / "runs", diverged=True)
    track.sync(store, "smoke", [run], tmp_path)
    assert query(store, "select status from runs") == [("FINISHED",)]
    assert tags(store)["status"] == "diverged"
    assert steps(store, "test_top1") == []


def test_more_values_than_one_call_takes(store, tmp_path):
    run = write_run(tmp_path / "runs")
    for name, text in tables(run.folder).items():
        header, row = text.splitlines()[:2]
        rows = [f"{epoch},{row.partition(',')[2]}" for epoch in range(1, 301)]
        (run.folder / name).write_text("\n".join([header, *rows]) + "\n")
    folder = RunFolder(run.folder)
    folder.finish(folder.read_json("final.json"))
    track.sync(store, "smoke", [run], tmp_path)
    assert steps(store) == list(range(1, 301))


def test_parallel_syncs_of_a_fresh_store_lose_and_repeat_nothing(tmp_path):
    """Four processes; each pair shares a job file, and the store does not exist yet."""
    jobs = []
    for seed in range(3):
        runs = [write_run(tmp_path / "runs", method, seed) for method in ("direct", "pact")]
        jobs.append(tmp_path / f"{seed}.jsonl")
        fake_runs.write_job(jobs[-1], [(run.folder.name, "run") for run in runs])
    command = [
        sys.executable,
        "-m",
        "workflow.track",
        "sync",
        "--suite",
        "smoke",
        "--runs",
        str(tmp_path / "runs"),
        "--store",
        str(tmp_path / "mlflow"),
        "--jobs",
    ]
    processes = [
        subprocess.Popen([*command, *map(str, part)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for part in (jobs[:1], jobs[:2], jobs[1:], jobs[2:])
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    store = Store(tmp_path / "mlflow")
    assert query(store, "select count(*) from experiments where name='smoke'") == [(1,)]
    assert query(store, "select count(*), count(distinct value) from tags where key='run_key'") == [
        (6, 6)
    ]
    assert steps(store) == sorted([*range(1, EPOCHS + 1)] * 6)


def test_a_watcher_follows_the_runs_that_a_sweep_lists(store, tmp_path, capfd):
    run, other = write_run(tmp_path / "runs"), write_run(tmp_path / "runs", "pact")
    full = tables(run.folder)
    set_epochs(run.folder, 1, full)
    watcher = Watcher(store, tmp_path / "runs", tmp_path)
    watcher.look()
    assert query(store, "select count(*) from runs") == [(0,)], "no sweep has begun"
    for suite in ("smoke", "paper"):
        settings = {
            "suite": {"suite": suite},
            "runs": [
                {"run_id": run.folder.name, "role": "run"},
                {"run_id": run.folder.name, "role": "ablation"},
                {"run_id": "not-begun", "role": "run"},
            ],
        }
        (tmp_path / suite).mkdir()
        (tmp_path / suite / "config.json").write_text(json.dumps(settings))
    watcher.look()
    set_epochs(run.folder, 2, full)
    os.utime(run.folder / "metrics.csv", ns=(1, 1))  # the clock of a file system may be too coarse
    watcher.look()
    assert steps(store) == [1, 1, 2, 2], "once for each suite"
    assert set(query(store, "select value from tags where key='suite'")) == {("smoke",), ("paper",)}
    assert tags(store)["run_id"] == run.folder.name != other.folder.name
    assert tags(store)["role"] == "run", "the first role counts"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"suite": 1, "runs": []}'])
def test_an_error_is_printed_once_while_it_lasts(text, store, tmp_path, capfd):
    (tmp_path / "config.json").write_text(text)
    watcher = Watcher(store, tmp_path / "runs", tmp_path)
    watcher.look()
    watcher.look()
    said = capfd.readouterr().err
    assert said.count("tracking: ") == 1 and str(tmp_path / "config.json") in said


def test_an_experiment_opens_in_the_view_for_training(store, tmp_path):
    """Also one that was made before, without the tag."""
    run = write_run(tmp_path / "runs")
    kind = "select e.name, t.value from experiment_tags t join experiments e using (experiment_id)"
    with store.client() as client:
        client.create_experiment("old", store.artifacts("old"))
    for suite in ("old", "new"):
        track.sync(store, suite, [run], tmp_path)
    track.sync(store, "old", [run], tmp_path)
    assert set(query(store, kind)) == {
        ("old", "custom_model_development"),
        ("new", "custom_model_development"),
    }


@pytest.mark.parametrize("text", ["not json\n", '["a"]\n', '{"run_id": "x"}\n'])
def test_a_damaged_job_file_is_named(tmp_path, text):
    (tmp_path / "job.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"job\.jsonl, line 1: .*delete the file and rerun"):
        track.job_runs("smoke", [tmp_path / "job.jsonl"], tmp_path)


def test_a_missing_run_folder_is_named(tmp_path):
    fake_runs.write_job(tmp_path / "job.jsonl", [("gone", "run")])
    with pytest.raises(InputError, match="gone/final.json is missing"):
        track.job_runs("smoke", [tmp_path / "job.jsonl"], tmp_path)


def test_a_broken_store_is_one_sentence_and_costs_no_result(tmp_path):
    run = write_run(tmp_path / "runs")
    before = {p: p.read_bytes() for p in run.folder.iterdir()}
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_text("this is no database, though it has a name")
    with pytest.raises(InputError, match="MLflow store .*results are not touched") as caught:
        track.sync(Store(tmp_path / "mlflow"), "smoke", [run], tmp_path)
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in run.folder.iterdir()} == before


def test_a_moved_store_is_refused(store, tmp_path):
    run = write_run(tmp_path / "runs")
    track.sync(store, "smoke", [run], tmp_path)
    store.folder.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="move it back, or delete it"):
        track.sync(Store(tmp_path / "elsewhere"), "smoke", [run], tmp_path)


def test_a_taken_port_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} .* cannot be used"):
            mlflow_ui.check_port(port)
    for port in (0, 70000):
        with pytest.raises(InputError, match="between 1 and 65535"):
            mlflow_ui.check_port(port)


def test_the_ui_answers_and_stops_with_its_server(store, tmp_path):
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "workflow.track",
        "ui",
        "--port",
        str(port),
        "--store",
        str(store.folder),
        "--runs",
        str(tmp_path / "runs"),
    ]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not answers(port):
            assert process.poll() is None and time.monotonic() < deadline, (
                tmp_path / "log"
            ).read_text()
            time.sleep(0.3)
        started = psutil.Process(process.pid)
        bound = {
            (c.laddr.ip, c.laddr.port)
            for each in (started, *started.children(recursive=True))
            for c in each.net_connections("inet")
            if c.status == psutil.CONN_LISTEN
        }
        assert bound == {("127.0.0.1", port)}
        assert status(port, f"127.0.0.1:{port}") == 200
        assert status(port, "elsewhere.example") == 403, "a page of another site reads nothing"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    assert process.returncode == 0
    assert not answers(port)


def status(port: int, host: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/", headers={"Host": host})
    return connection.getresponse().status


def free_port() -> int:
    """One that no process is given by chance, as it would be from 32768 on."""
    for port in range(20000 + os.getpid() % 10000, 32768):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise AssertionError("no free port")


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
