"""Files and names from elsewhere: none of them runs code, none leads out of its folder."""

import ast
import json
import os
import shutil
from importlib import metadata
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from sweeps import ROOT, Project
from test_signals import config

import baselines
from lowbit_core.datasets import manifest
from lowbit_core.datasets.beton import check_beton
from lowbit_core.datasets.catalog import dataset
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import checksum, write_json
from lowbit_core.runtime.run_folder import check_run_id, load_tensors
from lowbit_core.training.run import Place, train_run
from workflow.away.queue import read_queue
from workflow.suite import jobs, schema, settings, suite


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_checkpoint_runs_no_code(digits_root, tmp_path, capfd):
    """Neither one that a run starts from, nor one that it would go on from."""
    mark, runs = tmp_path / "mark", tmp_path / "runs"
    for folder, name in (("base", "weights.pt"), ("run", "checkpoint.pt")):
        (runs / folder).mkdir(parents=True)
        torch.save({"model": Payload(mark), "run_key": "a" * 64}, runs / folder / name)
    with pytest.raises(InputError, match=r"weights\.pt is corrupt"):
        load_tensors(runs / "base" / "weights.pt")
    place, method = Place(digits_root, runs, torch.device("cpu")), baselines.method("direct")
    with pytest.raises(InputError, match=r"weights\.pt is corrupt"):
        train_run(config("direct") | {"pretrained": "base", "run_id": "other"}, method, place)
    assert train_run(config("direct"), method, place)["status"] == "done"
    assert "the run begins again" in capfd.readouterr().err
    assert not mark.exists()


@pytest.mark.parametrize("tag", ("python/object/apply:os.system", "python/object/new:os.system"))
def test_a_suite_runs_no_code(tag, tmp_path):
    mark = tmp_path / "mark"
    text = (suite.SUITES / "smoke.yaml").read_text()
    payload = f"!!{tag} ['touch {mark}']"
    for hostile in (
        text.replace("suite: smoke", f"suite: {payload}"),
        f"{text}\nloader: {payload}\n",
    ):
        assert payload in hostile
        with pytest.raises(InputError, match="not valid YAML.*constructor") as caught:
            suite.parse_suite(hostile, "my.yaml")
        assert "\n" not in str(caught.value)
    assert not mark.exists()


# -- .beton files ----------------------------------------------------------------------------


def changed(folder: Path, change) -> Path:
    """Change train.beton, and its manifest to match, as who made the file could."""
    path = folder / "train.beton"
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    written = json.loads((folder / "train.manifest.json").read_text())
    written["files"]["train.beton"] = manifest.describe(path)
    write_json(folder / "train.manifest.json", written | {"checksum": checksum(written)})
    return path


def _first_field(data: bytearray) -> int:
    return data.index(b"image\0") - 1


def _set(offset, value: bytes):
    def change(data: bytearray) -> None:
        place = offset(data)
        data[place : place + len(value)] = value

    return change


def _table(data: bytearray) -> int:
    return int.from_bytes(data[16:24], "little")


HOSTILE = {
    "another kind of field": _set(_first_field, b"\x05"),
    "objects instead of bytes": lambda d: d.__setitem__(slice(None), d.replace(b'"|u1"', b'"|O8"')),
    "a larger shape": _set(lambda d: _first_field(d) + 17, b"\xff\xff"),
    "more samples": _set(lambda _: 8, b"\xff\xff"),
    "more fields": _set(lambda _: 2, b"\x09"),
    "a table beyond the file": _set(lambda _: 16, b"\xff" * 7),
    "a sample beyond the file": _set(lambda d: _table(d) + 8, b"\xff" * 6),
    "a sample larger than its place": _set(lambda d: _table(d) + 16, b"\xff\xff"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_beton_is_refused_before_ffcv_opens_it(what, digits_root, tmp_path, monkeypatch):
    from lowbit_core.data import ffcv_reader
    from lowbit_core.data.loader import make_loader

    folder = shutil.copytree(digits_root / "digits", tmp_path / "digits")
    monkeypatch.setattr(ffcv_reader, "Loader", lambda *_, **__: pytest.fail("FFCV opened it"))
    path = changed(folder, HOSTILE[what])
    with pytest.raises(InputError, match="is not a .beton file of digits") as caught:
        make_loader(folder, "train", batch_size=8, train=True, backend="ffcv")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_our_own_betons_are_not_refused(digits_root):
    for split in ("train", "test"):
        count = manifest.read_manifest(digits_root / "digits", split)["images"]
        check_beton(digits_root / "digits" / f"{split}.beton", dataset("digits"), count)


# -- names -----------------------------------------------------------------------------------

HOSTILE_NAME = 'it\'s "a" $(touch pwned) `touch pwned`; touch pwned & b'


def test_configured_paths_reach_the_shell_as_they_are(tmp_path):
    """Data are prepared into, and read from, a folder whose name is a trap."""
    project = Project(tmp_path / HOSTILE_NAME, tmp_path / HOSTILE_NAME / f"data {HOSTILE_NAME}")
    source = tmp_path / f"source {HOSTILE_NAME}"
    source.mkdir()
    target = f"results/tiny/jobs/{project.jobs()[0]}.jsonl"
    project.sweep(target, config=(f"data_source={source}",))
    assert (project.data / "digits" / "train.beton").exists()
    assert (project.folder / target).exists()
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()


@pytest.mark.parametrize(
    "name", (HOSTILE_NAME, "tiny; id", "$(id)", "../suites/smoke", "smoke\n", "")
)
def test_names_that_are_no_suite_or_data_set_are_refused(name):
    for work in (
        lambda: suite.load_suite(name),
        lambda: suite.load_suite("smoke", name or "no"),
        lambda: suite.load_suite("smoke").only(name or "no"),
        lambda: settings.check_config({"data": f"{name}\n{{job}}"}),
    ):
        with pytest.raises(InputError) as caught:
            work()
        assert "\n" not in str(caught.value)
    text = (suite.SUITES / "smoke.yaml").read_text()
    with pytest.raises(InputError, match="suite: "):
        suite.parse_suite(text.replace("suite: smoke", f"suite: {json.dumps(name)}"), "my.yaml")


ELSEWHERE = ("..", ".", "", "../x", "/etc", "a/b", ".hidden", "-rf", "a\n", "a\0", "a b", "ä", None)


@given(name=st.sampled_from(ELSEWHERE) | st.text(max_size=20))
def test_no_run_name_leads_out_of_the_results(name):
    try:
        check_run_id(name)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert name not in ELSEWHERE
        assert (Path("/r") / name).resolve().parent == Path("/r")


@pytest.mark.parametrize("name", ELSEWHERE)
def test_job_files_and_queues_lead_nowhere_else(name, tmp_path):
    job = tmp_path / "job.jsonl"
    job.write_text(json.dumps({"run_id": name, "role": "run", "runs": 1}) + "\n")
    with pytest.raises(InputError, match="not a job line"):
        jobs.read_job(job)
    for changes in ({"run_id": name}, {"pretrained": name}, {"dataset": name}):
        if changes == {"pretrained": None} or changes == {"pretrained": ""}:
            continue  # none
        run = config("direct") | changes
        queue = {"suite": "x", "runs": [run], "commit": "", "code": {}}
        write_json(tmp_path / "queue.json", queue)
        with pytest.raises(InputError, match="is not a queue"):
            read_queue(tmp_path)


def test_every_run_of_every_suite_has_a_legal_name():
    for path in suite.SUITES.glob("*.yaml"):
        for job in suite.load_suite(path.stem).jobs.values():
            assert all(check_run_id(run["run_id"]) for run in job.runs)


# -- the code itself -------------------------------------------------------------------------


def test_every_package_that_is_installed_for_us_is_pinned():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split()
                if "==" in line)  # fmt: skip
    pins = {canonicalize_name(name): pin for name, pin in pins.items()}
    todo = [("lowbit-bench", "test")]  # packages, each with the extra of it that is installed
    seen = set(todo)
    while todo:
        package, extra = todo.pop()
        for text in metadata.requires(package) or []:
            needed = Requirement(text)
            if needed.marker and not needed.marker.evaluate({"extra": extra}):
                continue
            name = canonicalize_name(needed.name)
            new = {(name, wanted) for wanted in ("", *needed.extras)} - seen
            seen |= new
            todo += new
            if name != "lowbit-bench":  # its extra `test` holds its extra `onnx`
                assert Version(metadata.version(name)).public == pins.get(name), name
    assert len({name for name, _ in seen}) > 100


def test_nothing_is_loaded_in_a_way_that_runs_code():
    """torch.load with weights_only, safe YAML, no pickle but one of known checksum, no shell."""
    calls = []
    for folder in ("lowbit_core", "baselines", "workflow", "benchmarks", "deploy", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    words = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    calls.append((path.name, ast.unparse(node.func), node.args, words))
    for file, name, arguments, words in calls:
        if name == "torch.load":
            assert words.get("weights_only") == "True", file
        if name == "yaml.load":
            assert ast.unparse(arguments[1]) == "UniqueKeys" and issubclass(
                schema.UniqueKeys, schema.yaml.SafeLoader
            )
        if name == "pickle.loads":
            assert file == "cifar100.py"  # after its checksum is compared
        assert name not in ("eval", "exec", "os.system", "pickle.load", "yaml.unsafe_load"), file
        assert words.get("shell") != "True" and words.get("allow_pickle") != "True", file
    assert sum(name == "torch.load" for _, name, *_ in calls) >= 1
