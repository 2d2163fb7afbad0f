"""The options `oscillation` and `reestimate_batch_norm`.

The figures of the golden tests were printed by the official code, Qualcomm-AI-research/
oscillations-qat at 9064d85 (TrackOscillation, CosineTempDecay, dampening_loss).
"""

from contextlib import nullcontext

import pytest
import torch
from test_training import Killed, assert_same_run, kill_after, train
from tiny_run import config, table
from torch import nn

import baselines
from lowbit_core.conversion.layers import QuantLayer
from lowbit_core.quantizers.direct import DirectWeight, IndirectWeight, code_position
from lowbit_core.quantizers.interface import WeightQuantizer
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.run_folder import load_tensors
from lowbit_core.training import loop
from lowbit_core.training.build import Place, build_run
from lowbit_core.training.evaluate import reestimate_batch_norm
from lowbit_core.training.oscillation import Oscillation, annealed, check_oscillation
from lowbit_core.training.state import Sums

CPU = torch.device("cpu")
FREEZE = {
    "method": "freeze", "momentum": 0.05, "start": 0.25, "threshold": 0.3, "threshold_end": 0.1,
}  # fmt: skip
# Of a short run: low enough that weights freeze in it.
EARLY = FREEZE | {"momentum": 0.2, "threshold": 0.19, "threshold_end": 0.15}
DAMPEN = {"method": "dampen", "momentum": 0.05, "start": 0.25, "weight": 0.7}
TRACK = {"method": "track", "momentum": 0.05}
HOLDING = [
    name
    for name, method in baselines.METHODS.items()
    if method.weight is not None
    and method.weight_class((method.w_bits or (2,))[0]).hold is not WeightQuantizer.hold
]


def with_options(method="direct", epochs=4, ema=0, **options):
    """The configuration of a short run whose recipe has these options."""
    settings = config(method, epochs=epochs, ema=ema)
    return settings | {"recipe": settings["recipe"] | options}


def tracked(quantizer, settings, steps=40):
    layer = QuantLayer(nn.Linear(quantizer.shape[1], quantizer.shape[0]), quantizer, None)
    return Oscillation(settings, nn.Sequential(layer), steps)


def walk(t):
    """The 2-bit codes of six weights after t steps."""
    return [t % 2, (t // 3) % 2 + 1, min(t // 10, 3), 2 + (t % 4 == 0), 1, (t * t // 5) % 4]


# -- the formulas ----------------------------------------------------------------------------


def test_the_schedule_is_the_official_one():
    found = [annealed(t / 40, 0.25, 0.3, 0.1) for t in (5, 10, 20, 30, 40)]
    assert found == pytest.approx([0.3, 0.3, 0.25, 0.15, 0.1])


def test_frequency_and_freezing_are_the_official_ones():
    quantizer = DirectWeight(torch.randn(1, 6), 2)
    quantizer.z.data = torch.tensor([walk(0)], dtype=torch.float32)
    state = tracked(quantizer, FREEZE)
    for t in range(1, 41):
        quantizer.z.data = torch.tensor([walk(t)], dtype=torch.float32)  # the optimizer's step
        state.after_step()
    golden = [0.079363, 0.124913, 0.0, 0.09045, 0.0, 0.125513]
    assert state.frequency.tolist() == pytest.approx(golden, abs=1e-6)
    assert state.frozen.tolist() == [True, True, False, True, False, True]
    assert quantizer.codes().tolist() == [[0, 2, 3, 2, 1, 0]]
    assert state.shares() == {"0": pytest.approx(4 / 6)}


@pytest.mark.parametrize("kind", (DirectWeight, IndirectWeight))
def test_the_gradient_of_dampening_is_the_official_one(kind):
    """Levels -0.3, -0.1, 0.1, 0.3; gradients of 0.7 times the official loss at the same weights."""
    w = torch.tensor([[-0.5, -0.25, 0.02], [0.13, 0.29, 0.31]])
    quantizer = kind(w, 2)
    quantizer.v.data = torch.tensor([[0.1, 0.2], [0.1, 0.2]])
    levels = torch.tensor([[-0.3, -0.1, 0.1, 0.3]]).expand(2, -1)
    latent, scale = (
        (quantizer.z, 0.2) if kind is DirectWeight else (quantizer.weight, 1.0)
    )  # a step on z counts in units of the distance of levels
    latent.data = code_position(w, levels) if kind is DirectWeight else w
    latent.grad = torch.ones(2, 3)
    state = tracked(quantizer, DAMPEN | {"start": 0}, steps=1)
    state.done = 1  # where the weight of the penalty has its full value
    state.before_step()
    golden = [[0.0, 0.0233333, -0.0373333], [0.0140000, -0.0046667, 0.0]]
    torch.testing.assert_close((latent.grad - 1) * scale, torch.tensor(golden), rtol=0, atol=1e-6)


def test_dampening_starts_at_nothing_and_rises():
    quantizer = IndirectWeight(torch.randn(3, 8), 2)
    sizes = []
    for done in (0, 10, 20, 40):
        state = tracked(quantizer, DAMPEN)
        state.done, quantizer.weight.grad = done, torch.zeros(3, 8)
        state.before_step()
        sizes.append(quantizer.weight.grad.abs().sum().item())
    assert sizes[:2] == [0, 0] and 0 < sizes[2] < sizes[3]


# -- holding codes ---------------------------------------------------------------------------


@pytest.mark.parametrize("bits", (1, 2, 3, 4))
@pytest.mark.parametrize("name", HOLDING)
def test_held_weights_use_the_given_levels_and_others_stay(name, bits):
    method = baselines.method(name)
    if not method.offers(bits) or method.weight_class(bits).hold is WeightQuantizer.hold:
        pytest.skip(f"{name} has no weights of {bits} bits whose codes can be held")
    torch.manual_seed(bits)
    quantizer = method.weight(torch.randn(5, 40), bits)
    before, latent = quantizer.codes(), quantizer.latent().detach().clone()
    wanted = torch.randint(quantizer.levels().shape[1], before.shape, dtype=torch.uint8)
    mask = torch.rand(before.shape) < 0.5
    quantizer.hold(wanted, mask)
    assert torch.equal(quantizer.codes(), torch.where(mask, wanted, before))
    used = quantizer.eval()().flatten(1)
    levels = quantizer.levels().expand(5, -1)
    assert torch.equal(used[mask], levels.gather(1, wanted.long())[mask])
    assert torch.equal(quantizer.latent()[~mask], latent[~mask])


@pytest.mark.parametrize("name", [n for n, m in baselines.METHODS.items() if m.weight])
def test_codes_are_the_numbers_of_the_levels_in_use(name):
    method = baselines.method(name)
    bits = 2 if method.offers(2) else method.w_bits[0]
    quantizer = method.weight(torch.randn(5, 40), bits)
    codes = quantizer.codes()
    assert quantizer.training and codes.dtype is torch.uint8
    levels = quantizer.levels().expand(5, -1)
    torch.testing.assert_close(levels.gather(1, codes.long()), quantizer.eval()().flatten(1))


# -- in training -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ("direct", "lq_nets", "indirect"))
def test_frozen_codes_stay_while_their_levels_learn(method, digits_root, tmp_path):
    settings = with_options(method, oscillation=EARLY)
    run = build_run(settings, baselines.method(method), Place(digits_root, tmp_path, CPU))
    state, seen = run.oscillation, []
    for images, labels in (batch for epoch in range(4) for batch in run.data.train.epoch(epoch)):
        loop.train_step(run, images, labels, 0.05, Sums(CPU))
        levels = torch.cat(
            [q.levels().expand(q.shape[0], -1).flatten() for q in state.quantizers.values()]
        )
        seen.append((state.frozen.clone(), state._codes(), levels.detach().clone()))
    middle, (last_mask, last_codes, last_levels) = seen[len(seen) // 2], seen[-1]
    mask, codes, levels = middle
    assert 0 < mask.float().mean() < 0.9
    assert (last_mask | ~mask).all() and last_mask.sum() > mask.sum()  # frozen for good
    assert torch.equal(codes[mask], last_codes[mask])
    assert (levels != last_levels).float().mean() > 0.5


def test_tracking_changes_nothing_else(digits_root, tmp_path):
    for name, changes in (("plain", {}), ("tracked", {"oscillation": TRACK})):
        train(with_options(epochs=2, **changes), digits_root, tmp_path / name)
    plain, tracked = tmp_path / "plain" / "run", tmp_path / "tracked" / "run"
    states = [load_tensors(folder / "weights.pt") for folder in (plain, tracked)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert (plain / "metrics.csv").read_bytes() == (tracked / "metrics.csv").read_bytes()
    assert {row["oscillating"] for row in table(plain / "weight_state.csv")} == {""}
    shares = [float(row["oscillating"]) for row in table(tracked / "weight_state.csv")]
    assert shares[0] == 0 and 0 < max(shares) <= 1


def test_dampening_brings_latent_weights_to_their_levels(digits_root, tmp_path):
    mismatches = []
    for weight in (1e-6, 30.0):
        settings = with_options(oscillation=DAMPEN | {"start": 0, "weight": weight})
        train(settings, digits_root, tmp_path / str(weight))
        rows = table(tmp_path / str(weight) / "run" / "weight_state.csv")
        mismatches.append(sum(float(row["mismatch"]) for row in rows if row["epoch"] == "4"))
    assert mismatches[1] < 0.9 * mismatches[0]


@pytest.mark.parametrize(
    "changes",
    (
        {"oscillation": EARLY},
        {"oscillation": EARLY, "ema": 0.9},
        {"oscillation": DAMPEN, "reestimate_batch_norm": 3},
        {"reestimate_batch_norm": 3, "ema": 0.9},
    ),
    ids=str,
)
@pytest.mark.parametrize("epoch", (1, 2))
def test_a_killed_and_resumed_run_ends_in_the_same_bytes(
    changes, epoch, digits_root, tmp_path, monkeypatch
):
    settings = with_options(epochs=2, **changes)
    train(settings, digits_root, tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_after(patch, epoch)
        with pytest.raises(Killed):
            train(settings, digits_root, tmp_path / "killed")
    train(settings, digits_root, tmp_path / "killed")
    assert_same_run(tmp_path / "killed" / "run", tmp_path / "whole" / "run")


# -- batch norm ------------------------------------------------------------------------------


class Batches:
    def __init__(self, batches):
        self.batches = batches

    def epoch(self, e):
        assert e == 0
        yield from ((images, None) for images in self.batches)


def test_batch_norm_is_re_estimated_as_the_plain_mean_over_the_first_batches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).double()
    batches = [torch.randn(8, 3, 6, 6, dtype=torch.float64) for _ in range(5)]
    model.train()(batches[0])
    tracked = model[1].num_batches_tracked.item()
    reestimate_batch_norm(model, Batches(batches), 3, nullcontext())
    outputs = [model[0](images) for images in batches[:3]]
    means = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
    variances = torch.stack([y.var((0, 2, 3), correction=1) for y in outputs]).mean(0)
    torch.testing.assert_close(model[1].running_mean, means)
    torch.testing.assert_close(model[1].running_var, variances)
    assert (model[1].momentum, model[1].num_batches_tracked.item()) == (0.1, tracked)
    assert not any(module.training for module in model.modules())


def test_re_estimation_changes_evaluation_and_nothing_of_training(digits_root, tmp_path):
    for name, changes in (("plain", {}), ("estimated", {"reestimate_batch_norm": 2})):
        train(with_options(epochs=2, **changes), digits_root, tmp_path / name)
    folders = [tmp_path / name / "run" for name in ("plain", "estimated")]
    plain, estimated = (load_tensors(folder / "weights.pt") for folder in folders)
    different = {name for name in plain if not torch.equal(plain[name], estimated[name])}
    assert different and all("running_" in name for name in different)
    rows = [table(folder / "metrics.csv") for folder in folders]
    for column in ("train_loss", "train_top1"):
        assert [row[column] for row in rows[0]] == [row[column] for row in rows[1]]
    assert [row["val_loss"] for row in rows[0]] != [row["val_loss"] for row in rows[1]]


# -- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, method, w_bits, words",
    (
        (TRACK, "fp", [32], "method 'fp' does not quantize weights"),
        (FREEZE, "direct", [8, 32], "at most 4 bits, and no layer"),
        (FREEZE, "dorefa", [2], "method 'dorefa' cannot hold the code"),
        (DAMPEN, "direct_sign", [2], "method 'direct_sign' cannot hold the code"),
    ),
)
def test_the_option_is_refused_where_it_makes_no_sense(settings, method, w_bits, words):
    with pytest.raises(InputError, match=words):
        check_oscillation(settings, baselines.method(method), w_bits)


def test_a_refused_run_writes_nothing(digits_root, tmp_path):
    with pytest.raises(InputError, match="cannot hold"):
        train(with_options("pact", oscillation=FREEZE), digits_root, tmp_path)
    assert not (tmp_path / "run" / "config.json").exists()


def test_tracking_takes_any_method_of_few_bits():
    for name in ("pact", "dorefa", "direct_sign", "lq_nets"):
        check_oscillation(TRACK, baselines.method(name), [2, 32])
