"""One run on two processes (Gloo): the losses and weights of one process with the same batches."""

import copy
import json
import multiprocessing
import os
import signal
import traceback

import pytest
import torch
import torch.distributed as dist
from tiny_run import config, table

import baselines
from lowbit_core.data.loader import BatchLoader, make_loader
from lowbit_core.parallel import processes, synchronise
from lowbit_core.runtime import signals
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.progress import Progress
from lowbit_core.runtime.run_folder import load_tensors
from lowbit_core.training import run as training
from lowbit_core.training.build import build_run
from lowbit_core.training.run import Place, train_run

PROCESSES = 2
LONGEST = 120.0  # seconds that any of these may take
STEPS = {"epochs": 2, "train_images": 192, "batch_size": 64, "augmentation": "crop_flip"}


@pytest.fixture
def double(monkeypatch):
    """Train in float64: in float32 the order of a sum can change a code."""
    epoch = BatchLoader.epoch

    def build_double(*arguments):
        run = build_run(*arguments)
        run.model.double()
        if run.ema is not None:
            run.ema.double()
        return run

    def epoch_double(self, e):
        return ((images.double(), labels) for images, labels in epoch(self, e))

    monkeypatch.setattr(training, "build_run", build_double)
    monkeypatch.setattr(BatchLoader, "epoch", epoch_double)


def _enter(work, rank, folder, arguments, failed):
    try:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES)
        work(*arguments)
        processes.finish()
    except BaseException:
        traceback.print_exc()
        failed.set()
        os._exit(1)
    os._exit(0)  # not through pytest's own exit


def together(folder, work, *arguments):
    """Run `work` in two forked processes of one group; a fork need not import everything again."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    failed = context.Event()
    children = [
        context.Process(target=_enter, args=(work, rank, folder, arguments, failed))
        for rank in range(PROCESSES)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(LONGEST)
        if child.is_alive():
            child.kill()
            failed.set()
    assert not failed.is_set()


def train(settings, root, runs):
    place = Place(root, runs, torch.device("cpu"))
    return train_run(settings, baselines.method(settings["method"]), place)


AVERAGED = {"ema": 0.9, "reestimate_batch_norm": 2}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *((name, {}) for name in ("fp", "direct", "direct_task", "lq_nets", "pact")),
        ("fp", AVERAGED),
    ],
    ids=str,
)
def test_two_processes_train_as_one(method, options, double, digits_root, tmp_path):
    # Without max pooling: among equal values, which quantization makes, the last bit would decide.
    network = {"arch": "resnet20", "arch_options": {"width": 8, "stem": "small_stride2"}}
    # With these bits no channel dies: of one that is constant, rounding would decide the gradient.
    settings = config(method, w=4, a=8, **STEPS | {"epochs": 1}, **network)
    settings["recipe"] |= options
    train(settings, digits_root, tmp_path / "one")
    together(tmp_path / "two", train, settings, digits_root, tmp_path / "two")
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    for name in ("metrics.csv", "weight_state.csv")[: 1 if method == "fp" else 2]:
        for a, b in zip(table(one / name), table(two / name), strict=True):
            for key, value in a.items():
                expected = value if key == "layer" or not value else pytest.approx(float(value))
                assert (b[key] if isinstance(expected, str) else float(b[key])) == expected, key
    states = [load_tensors(folder / "weights.pt") for folder in (one, two)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-6, atol=1e-9)
    finals = [json.loads((folder / "final.json").read_text()) for folder in (one, two)]
    assert [final["processes"] for final in finals] == [1, 2]
    assert finals[0]["files"].keys() == finals[1]["files"].keys()
    assert finals[1]["test_loss"] == pytest.approx(finals[0]["test_loss"])
    assert not list(two.glob("*.tmp")) and not (two / "checkpoint.pt").exists()


def _stopped(settings, root, runs, steps):
    """Train; the second process gets a signal in each of `steps`, counted over all resumes."""
    count, original = [0], Progress.step

    def step(self, epoch, images):
        count[0] += 1
        if count[0] in steps and not processes.is_first():
            signals.ask(signal.SIGTERM)
        original(self, epoch, images)

    Progress.step = step
    stops = 0
    while True:
        try:
            train(settings, root, runs)
            break
        except SystemExit as stop:
            assert stop.code == 128 + signal.SIGTERM
            signals._asked, stops = None, stops + 1
    assert stops == len(steps)


@pytest.mark.parametrize("method", ("direct", "pact"))
def test_a_signal_to_one_stops_both_and_they_resume_exactly(method, digits_root, tmp_path):
    settings = config(method, ema=0.9, compile="quantizers", **STEPS)
    for name, steps in (("whole", set()), ("stopped", {2, 3, 5})):
        together(tmp_path / name, _stopped, settings, digits_root, tmp_path / name, steps)
    one, two = tmp_path / "whole" / "run", tmp_path / "stopped" / "run"
    for name in ("metrics.csv", "weight_state.csv", "weight_histograms.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    states = [load_tensors(folder / "weights.pt") for folder in (one, two)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def _diverge(settings, root, runs):
    assert train(settings, root, runs)["status"] == "diverged"
    assert train(settings, root, runs)["status"] == "diverged"  # which is not trained again


def test_divergence_is_seen_by_both(digits_root, tmp_path):
    settings = config("pact", lr=1e30, warmup_epochs=0, epochs=2)
    together(tmp_path, _diverge, settings, digits_root, tmp_path)
    final = json.loads((tmp_path / "run" / "final.json").read_text())
    assert final["status"] == "diverged" and max(final["nonfinite_batches"].values()) > 0


def _refused(settings, root, runs):
    with pytest.raises(InputError, match="batch_size 63.*2 processes"):
        train(settings, root, runs)
    with pytest.raises(OSError, match="no room"):
        processes.from_first(_no_room)


def _no_room():
    raise OSError("no room")


def test_errors_reach_both(digits_root, tmp_path):
    together(tmp_path, _refused, config("fp", batch_size=63), digits_root, tmp_path)


def _batch_norm(precision):
    torch.manual_seed(0)
    x = torch.randn(8, 6, 5, 5, dtype=precision)
    for norm, whole in ((torch.nn.BatchNorm2d(6), x), (torch.nn.BatchNorm1d(6), x[..., 0, 0])):
        torch.nn.init.uniform_(norm.weight)
        model = torch.nn.Sequential(copy.deepcopy(norm))
        synchronise.synchronise_batch_norm(model)
        part = slice(4 * processes.rank(), 4 * processes.rank() + 4)
        for _ in range(2):
            expected, own = whole.clone().requires_grad_(), whole[part].clone().requires_grad_()
            wanted, y = norm(expected), model(own)
            torch.testing.assert_close(y, wanted[part])
            wanted.float().pow(3).sum().backward()
            y.float().pow(3).sum().backward()
            torch.testing.assert_close(own.grad, expected.grad[part], rtol=2e-4, atol=2e-5)
        state = norm.state_dict()
        for name, value in model[0].state_dict().items():
            torch.testing.assert_close(value, state[name])
        torch.testing.assert_close(model.eval()(whole), norm.eval()(whole))


def test_batch_norm_sees_the_whole_batch(tmp_path):
    together(tmp_path, _batch_norm, torch.float32)


READERS = ({"backend": "ffcv"}, {"backend": "torch"}, {"resident": True})


@pytest.mark.parametrize("reader", READERS, ids=str)
def test_shares_are_the_batches_of_one_process(reader, digits_root):
    def load(share, train):
        return make_loader(
            digits_root / "digits", "train", batch_size=48, train=train, seed=3, share=share,
            augmentation="crop_flip" if train else "none", **reader,
        )  # fmt: skip

    whole, parts = load((0, 1), True), [load((part, 3), True) for part in range(3)]
    for epoch in (1, 2):
        for (x, y), *own in zip(*(loader.epoch(epoch) for loader in (whole, *parts)), strict=True):
            assert torch.equal(torch.cat([images for images, _ in own]), x)
            assert torch.equal(torch.cat([labels for _, labels in own]), y)
    labels = torch.cat([y for part in range(5) for _, y in load((part, 5), False).epoch(0)])
    expected = torch.cat([y for _, y in load((0, 1), False).epoch(0)])
    assert torch.equal(labels.sort().values, expected.sort().values)
    with pytest.raises(InputError, match="share"):
        load((0, 5), True)
