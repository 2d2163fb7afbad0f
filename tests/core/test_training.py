"""Training on a tiny data set: resuming, divergence, damaged files, what a run leaves behind."""

import json
import math
import shutil
from contextlib import contextmanager

import pytest
import torch
from offered import QUANTIZED, a_width, offered
from tiny_run import RECIPE, config, table
from torch.utils._python_dispatch import TorchDispatchMode

import baselines
from lowbit_core.conversion.layers import QuantLayer
from lowbit_core.kernels.fused import compiler_found, set_compile
from lowbit_core.runtime import files, hardware
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.progress import Progress
from lowbit_core.runtime.run_folder import METRICS, RunFolder, load_tensors
from lowbit_core.runtime.run_status import RunStatus, run_status
from lowbit_core.training import build, diagnostics, loop, state
from lowbit_core.training import run as training
from lowbit_core.training.build import build_run
from lowbit_core.training.run import Place, train_run

CLOCK = {"created", "seconds", "files", "checksum"}  # of final.json


class Killed(BaseException):
    """Stands for a signal that ends the process."""


def train(settings, root, runs):
    return train_run(
        settings, baselines.method(settings["method"]), Place(root, runs, torch.device("cpu"))
    )


def status_of(settings, runs):
    """What `runs` holds of the run, its weights included, and the damage."""
    return run_status(runs / settings["run_id"], settings["run_key"], weights=True)


def is_finished(settings, runs):
    return status_of(settings, runs)[0] is RunStatus.DONE


def kill_after(monkeypatch, epoch, module=state, moment="save"):
    """Make training stop after `module.moment` of an epoch: once its checkpoint is written."""
    original = getattr(module, moment)

    def stop(run, at, *arguments):
        result = original(run, at, *arguments)
        if at == epoch:
            raise Killed
        return result

    monkeypatch.setattr(module, moment, stop)


def assert_same_run(one, other):
    for name in (
        "metrics.csv",
        "weight_state.csv",
        "layers.json",
        "weight_histograms.json",
        "channel_error.csv",
    ):
        assert (one / name).exists() == (other / name).exists(), name
        if (one / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    states = [load_tensors(folder / "weights.pt") for folder in (one, other)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    finals = [json.loads((folder / "final.json").read_text()) for folder in (one, other)]
    for key in finals[0].keys() - CLOCK:
        assert finals[0][key] == finals[1][key], key


@pytest.fixture(scope="module")
def whole(digits_root, tmp_path_factory):
    """A finished run of a method, trained once: whole(method) gives its folder."""
    done = {}

    def run(method, **changes):
        key = (method, *changes.items())
        if key not in done:
            runs = tmp_path_factory.mktemp(method)
            train(config(method, **changes), digits_root, runs)
            done[key] = runs / "run"
        return done[key]

    return run


# -- resuming --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ("direct", "lq_nets", "pact", "fp", "direct_sign"))
def test_two_epochs_a_kill_and_two_more_equal_four(
    method, digits_root, tmp_path, monkeypatch, whole
):
    with monkeypatch.context() as patch:
        kill_after(patch, 2)
        with pytest.raises(Killed):
            train(config(method), digits_root, tmp_path)
    folder = tmp_path / "run"
    assert (folder / "checkpoint.pt").exists() and not (folder / "final.json").exists()
    final = train(config(method), digits_root, tmp_path)
    assert final["status"] == "done" and final["epochs_done"] == 4
    assert not (folder / "checkpoint.pt").exists()
    assert [row["epoch"] for row in table(folder / "metrics.csv")] == ["1", "2", "3", "4"]
    assert_same_run(folder, whole(method))


@pytest.mark.parametrize(
    "changes", ({"ema": 0.9}, {"augmentation": "crop_flip"}, {"precision": "bf16"}), ids=str
)
def test_resuming_is_exact_with_every_option(changes, digits_root, tmp_path, monkeypatch):
    settings = config("direct", epochs=2, **changes)
    train(settings, digits_root, tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_after(patch, 1)
        with pytest.raises(Killed):
            train(settings, digits_root, tmp_path / "killed")
    train(settings, digits_root, tmp_path / "killed")
    assert_same_run(tmp_path / "killed" / "run", tmp_path / "whole" / "run")


def test_a_kill_between_metrics_and_checkpoint_repeats_the_epoch(
    digits_root, tmp_path, monkeypatch, whole
):
    with monkeypatch.context() as patch:
        # The rows of epoch 3 are written, its state is not.
        kill_after(patch, 3, diagnostics, "record_weights")
        with pytest.raises(Killed):
            train(config(), digits_root, tmp_path)
    folder = tmp_path / "run"
    assert len(table(folder / "metrics.csv")) == 3
    with (folder / "metrics.csv").open("a") as file:
        file.write("4,0.00")  # and half a line
    with (folder / "timings.csv").open("a") as file:
        file.write("3")
    train(config(), digits_root, tmp_path)
    assert_same_run(folder, whole("direct"))
    assert [row["epoch"] for row in table(folder / "timings.csv")] == ["1", "2", "3", "4"]


def test_a_kill_before_the_first_checkpoint_starts_again(digits_root, tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        kill_after(patch, 1, diagnostics, "record_weights")
        with pytest.raises(Killed):
            train(config(), digits_root, tmp_path)
    train(config(), digits_root, tmp_path)
    assert_same_run(tmp_path / "run", whole("direct"))


def test_a_kill_in_the_last_step_only_finishes(digits_root, tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        kill_after(patch, 4)
        with pytest.raises(Killed):
            train(config(), digits_root, tmp_path)
        patch.setattr(loop, "train_epoch", None)  # must not be called
        train(config(), digits_root, tmp_path)
    assert_same_run(tmp_path / "run", whole("direct"))


# -- what is kept and what is redone ---------------------------------------------------------


def test_a_finished_run_is_not_trained_again(digits_root, tmp_path, monkeypatch):
    settings = config("pact", epochs=1)
    first = train(settings, digits_root, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir()}
    monkeypatch.setattr(training, "build_run", None)
    assert is_finished(settings, tmp_path)
    assert train(settings, digits_root, tmp_path) == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir()} == before


def test_a_changed_configuration_is_trained_again(digits_root, tmp_path):
    old = config("pact", epochs=1)
    train(old, digits_root, tmp_path)
    new = config("pact", epochs=2, key="b" * 64)
    assert not is_finished(new, tmp_path)
    assert train(new, digits_root, tmp_path)["epochs_done"] == 2
    assert len(table(tmp_path / "run" / "metrics.csv")) == 2
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run_key"] == "b" * 64


def test_a_changed_run_that_is_killed_is_not_taken_for_finished(digits_root, tmp_path, monkeypatch):
    train(config("pact", epochs=1), digits_root, tmp_path)
    new = config("pact", epochs=2, key="b" * 64)
    with monkeypatch.context() as patch:
        kill_after(patch, 1)
        with pytest.raises(Killed):
            train(new, digits_root, tmp_path)
    assert not is_finished(new, tmp_path)


def test_a_run_leaves_everything_that_the_results_are_made_of(whole):
    folder = whole("direct")
    final = json.loads((folder / "final.json").read_text())
    assert final["status"] == "done" and final["diverged_layer"] is None
    assert 0 <= final["top1"] <= final["top5"] <= 100
    assert final["size_bytes"] < final["fp_size_bytes"] and final["bitops"] > 0
    assert final["versions"]["torch"] and final["loader"] == "torch" and final["compile"] == "off"
    metrics = table(folder / "metrics.csv")
    assert tuple(metrics[0]) == METRICS
    assert float(metrics[-1]["val_top1"]) == pytest.approx(final["val_top1"], abs=1e-4)
    layers = json.loads((folder / "layers.json").read_text())
    quantized = [row["layer"] for row in layers if row["status"] == "quantized"]
    state = table(folder / "weight_state.csv")
    assert {row["layer"] for row in state} == set(quantized)
    assert [row["epoch"] for row in state] == sorted(
        (str(e) for e in range(5) for _ in quantized), key=int
    )
    assert {row["layer"] for row in table(folder / "channel_error.csv")} == set(quantized)
    histograms = json.loads((folder / "weight_histograms.json").read_text())
    assert set(histograms) <= set(quantized) and histograms
    weights = load_tensors(folder / "weights.pt")
    assert all(t.isfinite().all() for t in weights.values() if t.is_floating_point())


def test_learning_happens(whole):
    for method in ("fp", "direct", "pact"):
        rows = table(whole(method, epochs=12) / "metrics.csv")
        assert float(rows[-1]["train_loss"]) < 0.9 * float(rows[0]["train_loss"])


def test_methods_start_from_the_shared_checkpoint(digits_root, tmp_path):
    train(config("fp", run_id="base", epochs=2), digits_root, tmp_path)
    settings = config("fp", run_id="tuned", epochs=0, pretrained="base")
    train(settings, digits_root, tmp_path)
    base, tuned = (load_tensors(tmp_path / n / "weights.pt") for n in ("base", "tuned"))
    assert all(torch.equal(base[k], tuned[k]) for k in base)
    finals = [json.loads((tmp_path / n / "final.json").read_text()) for n in ("base", "tuned")]
    assert finals[0]["top1"] == finals[1]["top1"] and finals[1]["epochs_done"] == 0


def test_every_activation_quantizer_is_calibrated_whatever_gave_it_its_bits(digits_root, tmp_path):
    """Activations have 32 bits, but 8 bits by exception or in the first and last layer."""
    policy = {"first_last": "8bit", "shortcut": "quantized", "exceptions": {}}
    train(config("pact", a=32, epochs=0, policy=policy), digits_root, tmp_path)
    state = load_tensors(tmp_path / "run" / "weights.pt")
    clips = {k: v.item() for k, v in state.items() if k.endswith("alpha")}
    assert len(clips) == 2 and 10.0 not in clips.values()


def test_momentum_zero_is_a_legal_setting(digits_root, tmp_path):
    settings = config("fp", epochs=1, momentum=0)
    assert train(settings, digits_root, tmp_path)["status"] == "done"


# -- divergence ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "bits"), [(baselines.method("fp"), 32), *offered(2, 8)], ids=str
)
def test_an_absurd_learning_rate_ends_as_diverged(method, bits, digits_root, tmp_path):
    if method.name == "direct_plain":
        pytest.skip("its parts are those of direct and of lq_nets")
    settings = config(method.name, w=bits, a=bits, lr=1e30, warmup_epochs=0, epochs=3)
    final = train(settings, digits_root, tmp_path)
    folder = tmp_path / "run"
    assert final["status"] == "diverged" and final["top1"] is None
    assert 1 <= final["epochs_done"] <= 3
    rows = table(folder / "metrics.csv")
    assert not math.isfinite(float(rows[-1]["train_loss"]))
    for name in ("config.json", "layers.json", "weights.pt", "timings.csv"):
        assert (folder / name).exists(), name
    json.loads(
        (folder / "final.json").read_text(),
        parse_constant=lambda word: pytest.fail(f"{word} is not JSON"),
    )
    assert is_finished(settings, tmp_path) and train(settings, digits_root, tmp_path) == final


def test_a_run_that_breaks_in_its_last_step_has_diverged(digits_root, tmp_path, monkeypatch):
    """The loss of the last epoch is measured before the step that breaks the weights."""
    monkeypatch.setattr(
        loop, "learning_rate", lambda step, total, *_: 0.01 if step < total - 1 else 1e38
    )
    final = train(config("fp", epochs=2), digits_root, tmp_path)
    assert final["status"] == "diverged" and final["top1"] is None
    text = (tmp_path / "run" / "final.json").read_text()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_a_batch_with_nan_is_counted_and_the_run_marked_diverged(
    digits_root, tmp_path, monkeypatch
):
    """One NaN in one batch: the layer whose input had it is named."""

    def poisoned(*arguments):
        run = build_run(*arguments)
        layer = [m for m in run.model.modules() if isinstance(m, QuantLayer)][1]
        calls = []

        def poison(_layer, inputs):
            calls.append(None)
            if len(calls) == 3:
                x = inputs[0].clone()
                x.view(-1)[0] = float("nan")
                return (x, *inputs[1:])
            return None

        layer.register_forward_pre_hook(poison)
        return run

    monkeypatch.setattr(training, "build_run", poisoned)
    final = train(config("direct", epochs=3), digits_root, tmp_path)
    assert final["status"] == "diverged" and final["epochs_done"] == 1
    named = [row["layer"] for row in json.loads((tmp_path / "run" / "layers.json").read_text())]
    assert final["diverged_layer"] == named[2]  # the first is not quantized
    assert final["nonfinite_batches"][named[2]] >= 1


def dies_in_step(number, monkeypatch, what, attempts=1):
    """In the first `attempts`, the second quantized layer is dead from pass `number` on.

    All its codes become one, or the levels of its weights or its inputs fall together.
    """
    seen = []

    def build(*arguments):
        run = build_run(*arguments)
        seen.append(run)
        if len(seen) > attempts:
            return run
        layer = [m for m in run.model.modules() if isinstance(m, QuantLayer)][1]
        passes = []

        def die(_layer, inputs):
            passes.append(None)
            if len(passes) < number:
                return inputs
            for name, parameter in layer.weight_quantizer.named_parameters():
                if what == "codes" and name != "v":
                    parameter.data.fill_(parameter.abs().max() + 1)
                if what == "levels" and name == "v":
                    parameter.data.zero_()
            if what == "inputs":
                activation = layer.activation_quantizer
                for state in (*activation.parameters(), *activation.buffers()):
                    state.data.zero_()
            return inputs

        layer.register_forward_pre_hook(die)
        return run

    monkeypatch.setattr(training, "build_run", build)
    return seen


DEAD = {
    "codes": "all weights are one value",
    "levels": "all weights are one value",
    "inputs": "all quantized inputs are one value",
}


@pytest.mark.parametrize("method, what", [
    ("direct", "levels"), ("direct", "codes"), ("lq_nets", "codes"),
    ("direct_sign", "levels"), ("direct", "inputs"),
])  # fmt: skip
def test_a_dead_quantizer_is_noticed_within_the_epoch(
    method, what, digits_root, tmp_path, monkeypatch
):
    dies_in_step(9, monkeypatch, what)  # calibration, 5 steps, 1 of validation, ...
    final = train(config(method, epochs=4), digits_root, tmp_path)
    assert final["status"] == "diverged" and final["top1"] is None and final["epochs_done"] == 2
    names = [row["layer"] for row in json.loads((tmp_path / "run" / "layers.json").read_text())]
    assert final["diverged_layer"] == names[2] and final["diverged_because"] == DEAD[what]


@pytest.mark.parametrize("attempts", (1, 2, 3))
def test_a_diverged_run_begins_again_as_often_as_its_recipe_allows(
    attempts, digits_root, tmp_path, monkeypatch, capfd
):
    seen = dies_in_step(9, monkeypatch, "codes", attempts)
    recipe = {**RECIPE, "restarts": 2}
    final = train(config("direct", recipe=recipe), digits_root, tmp_path)
    assert [run.lr for run in seen] == [0.05, 0.025, 0.0125][: attempts + 1]
    assert final["status"] == ("done" if attempts < 3 else "diverged")
    assert [a["lr"] for a in final["diverged_before"]] == [0.05, 0.025][:attempts]
    assert {(a["epoch"], a["because"]) for a in final["diverged_before"]} == {(2, DEAD["codes"])}
    assert final["lr"] == seen[-1].lr
    rows = table(tmp_path / "run" / "metrics.csv")
    assert [row["epoch"] for row in rows] == (list("1234") if attempts < 3 else list("12"))
    assert f"restart 1 of 2 with lr {seen[1].lr:g}" in capfd.readouterr().err


def test_a_restart_that_is_killed_goes_on_as_a_restart(digits_root, tmp_path, monkeypatch):
    settings = config("direct", recipe={**RECIPE, "restarts": 1})
    with monkeypatch.context() as patch:
        dies_in_step(9, patch, "codes")
        whole = train(settings, digits_root, tmp_path / "whole")
    with monkeypatch.context() as patch:
        dies_in_step(9, patch, "codes")
        kill_after(patch, 3)  # in the second attempt: the first does not get there
        with pytest.raises(Killed):
            train(settings, digits_root, tmp_path / "killed")
    final = train(settings, digits_root, tmp_path / "killed")  # nothing dies: no third attempt
    assert (
        final["diverged_before"] == whole["diverged_before"] and len(whole["diverged_before"]) == 1
    )
    assert_same_run(tmp_path / "killed" / "run", tmp_path / "whole" / "run")


@pytest.mark.slow
@pytest.mark.skipif(not compiler_found(), reason="no C++ compiler: nothing is compiled here")
@pytest.mark.parametrize("method", ("direct", "pact", "lq_nets"))
def test_a_compiled_model_trains_as_the_uncompiled_one(method, digits_root, tmp_path):
    """Rounding differs in the last digits, so the losses agree, not the bits."""
    losses = {}
    try:
        for mode in ("off", "quantizers", "model"):
            settings = config(method, run_id=mode, key=mode[0] * 64, compile=mode, epochs=1)
            final = train(settings, digits_root, tmp_path)
            assert final["compile"] == mode and final["status"] == "done"
            losses[mode] = float(table(tmp_path / mode / "metrics.csv")[0]["train_loss"])
    finally:
        set_compile(False)
    assert losses["quantizers"] == pytest.approx(losses["off"], rel=0.02)
    assert losses["model"] == pytest.approx(losses["off"], rel=0.02)


def test_a_diverged_checkpoint_is_named(digits_root, tmp_path):
    train(config("fp", run_id="base", lr=1e30, warmup_epochs=0, epochs=1), digits_root, tmp_path)
    settings = config("direct", pretrained="base", epochs=1)
    with pytest.raises(InputError, match="base"):
        train(settings, digits_root, tmp_path)


# -- damaged files ---------------------------------------------------------------------------


def one_sentence(caught, *words):
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text


@pytest.mark.parametrize("damage", ("empty", "junk", "cut", "flip", "other run", "other version"))
def test_a_damaged_checkpoint_is_named_and_the_run_begins_again(
    damage, digits_root, tmp_path, monkeypatch, capsys
):
    settings = config("pact", epochs=2)
    train(settings, digits_root, tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_after(patch, 1)
        with pytest.raises(Killed):
            train(settings, digits_root, tmp_path)
    path = tmp_path / "run" / "checkpoint.pt"
    whole = path.read_bytes()
    if damage.startswith("other"):
        changes = {"run_key": "b" * 64} if damage == "other run" else {"versions": {"torch": "1.0"}}
        torch.save(torch.load(path, weights_only=True) | changes, path)
    else:
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        half = whole[: len(whole) // 2]
        path.write_bytes({"empty": b"", "junk": b"x" * 99, "cut": half, "flip": flipped}[damage])
    train(settings, digits_root, tmp_path)
    said = [line for line in capsys.readouterr().err.splitlines() if str(path) in line]
    assert len(said) == 1 and "begins again" in said[0]
    assert_same_run(tmp_path / "run", tmp_path / "whole" / "run")


def test_tables_of_an_unfinished_run_are_restored_from_its_checkpoint(
    digits_root, tmp_path, monkeypatch, whole
):
    with monkeypatch.context() as patch:
        kill_after(patch, 2)
        with pytest.raises(Killed):
            train(config(), digits_root, tmp_path)
    folder = tmp_path / "run"
    (folder / "metrics.csv").write_text("epoch,lr\n1,9\n")
    (folder / "weight_state.csv").unlink()
    (folder / "timings.csv").write_bytes(b"\xff\x00")
    (folder / "config.json").write_text("{")
    (folder / "layers.json").unlink()
    (folder / ".weights.pt.77.tmp").write_bytes(b"left by a killed process")
    train(config(), digits_root, tmp_path)
    assert_same_run(folder, whole("direct"))
    assert len(table(folder / "timings.csv")) == 4 and not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("damage", (b"", b"x" * 100, None), ids=("empty", "junk", "missing"))
def test_damaged_pretrained_weights_are_named(damage, digits_root, tmp_path):
    path = tmp_path / "base" / "weights.pt"
    path.parent.mkdir()
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(InputError) as caught:
        train(config("direct", pretrained="base"), digits_root, tmp_path)
    one_sentence(caught, str(path))


def test_pretrained_weights_of_another_network_are_named(digits_root, tmp_path):
    train(config("fp", run_id="base", epochs=0), digits_root, tmp_path)
    settings = config(
        "direct", pretrained="base", arch_options={"width": 3, "stem": "small_stride2"}
    )
    with pytest.raises(InputError) as caught:
        train(settings, digits_root, tmp_path)
    one_sentence(caught, "base", "alexnet", "3")


FINISHED = (
    "final.json", "config.json", "layers.json", "metrics.csv", "timings.csv", "weight_state.csv",
    "weight_histograms.json", "weights.pt",
)  # fmt: skip


@pytest.mark.parametrize("name", FINISHED)
@pytest.mark.parametrize("damage", ("empty", "cut", "junk", "flip", "missing"))
def test_a_damaged_file_of_a_finished_run_is_named(name, damage, whole, tmp_path):
    shutil.copytree(whole("direct"), tmp_path / "damaged" / "run")
    settings = config()
    path = tmp_path / "damaged" / "run" / name
    data = path.read_bytes()
    if damage == "flip":
        place = data.rindex(b"1") if name != "weights.pt" else len(data) // 2
        data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    elif damage != "missing":
        data = {"empty": b"", "cut": data[: len(data) // 2], "junk": b"\x00\xff"}[damage]
    path.unlink() if damage == "missing" else path.write_bytes(data)
    status, said = status_of(settings, tmp_path / "damaged")
    if (name, damage) == ("final.json", "missing"):  # what an unfinished run looks like
        assert status is RunStatus.ABSENT and said == ""
    else:
        assert status is RunStatus.DAMAGED and "\n" not in said and str(path) in said


def test_a_damaged_run_is_made_again(whole, digits_root, tmp_path, capsys):
    shutil.copytree(whole("direct"), tmp_path / "run")
    (tmp_path / "run" / "metrics.csv").write_text("epoch\n")
    train(config(), digits_root, tmp_path)
    assert_same_run(tmp_path / "run", whole("direct"))
    assert capsys.readouterr().err.count("made again") == 1


def test_a_batch_larger_than_the_data_is_refused(digits_root, tmp_path):
    with pytest.raises(InputError) as caught:
        train(config("fp", batch_size=400), digits_root, tmp_path)
    one_sentence(caught, "400", "320", "'short'")


def test_missing_data_is_named(tmp_path):
    with pytest.raises(InputError) as caught:
        train(config("fp"), tmp_path / "data", tmp_path)
    one_sentence(caught, "digits")


def test_a_full_disk_is_an_error_that_the_command_line_can_report(tmp_path):
    """It is an OSError, not a RuntimeError of torch's writer, which would end in a traceback."""
    folder = RunFolder(tmp_path)
    (tmp_path / "old.pt").write_bytes(b"old")
    full = tmp_path / ".old.pt.tmp"
    full.symlink_to("/dev/full")

    @contextmanager
    def onto_a_full_disk(path):
        yield full

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "replace_file", onto_a_full_disk)
        with pytest.raises(OSError, match="No space left"):
            folder.save_tensors("old.pt", {"a": torch.zeros(10_000)})
    assert (tmp_path / "old.pt").read_bytes() == b"old"


# -- tables ----------------------------------------------------------------------------------


def test_tables_have_fixed_formats(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_table("t.csv", ("a", "b", "c"), [{"a": 1 / 3, "b": None, "c": 7}])
    assert (tmp_path / "t.csv").read_text() == "a,b,c\n0.33333333,,7\n"


def test_observing_does_not_change_a_run(digits_root, tmp_path, monkeypatch, whole):
    monkeypatch.setattr(diagnostics, "weight_state", lambda model, previous: ([], {}))
    train(config("lq_nets"), digits_root, tmp_path)
    states = [load_tensors(f / "weights.pt") for f in (tmp_path / "run", whole("lq_nets"))]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


class Reads(TorchDispatchMode):
    """Counts the reads of a number from a tensor: each makes the processor wait for a GPU."""

    count = 0
    aten = torch.ops.aten
    READS = (
        aten._local_scalar_dense.default,
        aten.is_nonzero.default,
        aten.equal.default,
        aten.nonzero.default,  # its size is a number of the device
        aten.masked_select.default,
        aten._unique2.default,
    )

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        by_mask = function in (self.aten.index.Tensor, self.aten.index_put_.default) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        self.count += function in self.READS or by_mask
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", baselines.METHODS.values(), ids=lambda m: m.name)
def test_no_step_waits_for_the_device(method, digits_root, tmp_path):
    counts, w_bits = [], a_width(method)
    for images in (128, 512):
        run = build_run(
            config(method.name, w=w_bits, train_images=images, augmentation="crop_flip"),
            method,
            Place(digits_root, tmp_path / str(images), torch.device("cpu")),
        )
        _, sums = state.start(run, None)
        progress = Progress("run", 1, images)
        with Reads() as reads:
            loop.train_epoch(run, 1, sums, progress)
        counts.append(reads.count)
    assert counts[0] == counts[1] > 0  # only at the epoch's end


def test_a_read_in_a_step_is_found():
    x = torch.tensor([1.0, 2.0])
    for read in (lambda: x[0].item(), lambda: bool(x.sum() > 1), lambda: x[x > 1], x.nonzero):
        with Reads() as reads:
            read()
        assert reads.count > 0


@pytest.mark.parametrize("bits", ((1, 1), (2, 32), (32, 2), (1, 32), (8, 1)), ids=str)
@pytest.mark.parametrize("method", QUANTIZED, ids=lambda m: m.name)
def test_every_method_trains_at_every_kind_of_bits(method, bits, digits_root, tmp_path):
    w, a = bits = (a_width(method, bits[0]), bits[1])
    settings = config(method.name, w=w, a=a, epochs=1, train_images=128)
    final = train(settings, digits_root, tmp_path)
    assert final["status"] == "done" and final["top1"] is not None
    layers = json.loads((tmp_path / "run" / "layers.json").read_text())
    quantized = [row for row in layers if row["status"] == "quantized"]
    assert {(row["w_bits"], row["a_bits"]) for row in quantized} == {bits}
    for row in quantized:
        assert (row["weight_quantizer"] is None) == (w == 32)
        assert (row["activation_quantizer"] is None) == (a == 32)
    bitops = sum(row["macs"] * row["w_bits"] * row["a_bits"] for row in layers)
    assert final["bitops"] == bitops


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    from lowbit_core.runtime import files

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device.*weights.pt"):
        files.write_bytes(tmp_path / "weights.pt", b"1")
    assert not list(tmp_path.iterdir())


def test_bfloat16_without_instructions_warns_once_and_stands_in_the_record(
    digits_root, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(hardware, "computes_bfloat16", lambda: False)
    build._warn_where_bfloat16_is_emulated.cache_clear()
    finals = [
        train(config("lq_nets", run_id=name, epochs=1, precision="bf16"), digits_root, tmp_path)
        for name in ("one", "two")
    ]
    assert capsys.readouterr().err.count("no bfloat16 instructions") == 1
    assert finals[0]["instruction_set"] == torch.backends.cpu.get_cpu_capability()
    assert finals[0]["kernel_lanes"] in (None, 8, 16)
    assert finals[0]["top1"] == finals[1]["top1"] is not None
