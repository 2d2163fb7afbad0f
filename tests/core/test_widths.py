"""The option `widths`: one network that is trained for several bit-widths at once."""

import copy
import json

import pytest
import torch
from test_training import Killed, assert_same_run, kill_after, train
from tiny_run import config, table
from torch import nn
from torch.nn import functional

import baselines
from lowbit_core.quantizers.basis import all_levels, ordered
from lowbit_core.quantizers.interface import ReadWeight, WeightQuantizer
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.run_folder import load_tensors
from lowbit_core.training import loop
from lowbit_core.training.build import Place, build_run
from lowbit_core.training.evaluate import evaluate
from lowbit_core.training.state import Sums, start
from lowbit_core.training.widths import check_widths

CPU = torch.device("cpu")
READABLE = [
    name
    for name, method in baselines.METHODS.items()
    if method.weight is not None
    and method.weight_class((method.w_bits or (2,))[0]).read is not WeightQuantizer.read
]


def several(method="direct", epochs=2, lower=("W2A2", "W1A1"), **widths):
    settings = config(method, epochs=epochs, w=3, a=3)
    option = {"widths": {"lower": list(lower)} | widths}
    return settings | {"recipe": settings["recipe"] | option}


def built(digits_root, runs, settings):
    run = build_run(settings, baselines.method(settings["method"]), Place(digits_root, runs, CPU))
    start(run, None)
    return run


# -- reading with fewer bits -----------------------------------------------------------------


@pytest.mark.parametrize("name", READABLE)
def test_a_lower_width_is_read_from_the_upper_bits_of_the_codes(name):
    torch.manual_seed(1)
    quantizer = baselines.method(name).weight(torch.randn(5, 4, 3, 3), 4)
    quantizer()
    codes, v = quantizer.codes().long(), ordered(quantizer.v.detach())
    for bits in (1, 2, 3, 4):
        read = ReadWeight(quantizer, bits)
        levels = all_levels(v[:, 4 - bits :], signed=True)
        torch.testing.assert_close(read.levels(), levels)
        expected = levels.expand(5, -1).gather(1, codes >> (4 - bits)).view(5, 4, 3, 3)
        torch.testing.assert_close(read(), expected)
        assert torch.equal(read.codes(), (codes >> (4 - bits)).to(torch.uint8))
        assert read.level_numbers() == len(v) * bits and not list(
            read.named_parameters(recurse=False)
        )


def test_levels_of_fewer_bits_are_the_means_of_those_they_stand_for():
    quantizer = baselines.method("direct").weight(torch.randn(5, 40), 4)
    full = quantizer.levels()
    for bits in (1, 2, 3):
        means = full.view(5, 2**bits, -1).mean(2)
        torch.testing.assert_close(ReadWeight(quantizer, bits).levels(), means)


def test_a_step_on_a_direct_code_moves_the_weight_by_as_much_at_any_width():
    """Of z the gradient at K' bits is g / d, with d the step of the K' levels per code of K."""
    quantizer = baselines.method("direct").weight(torch.randn(3, 20), 3)
    quantizer.v.data = torch.tensor([[0.1, 0.2, 0.4]] * 3)  # uniform: d = 0.2 at every width
    quantizer.z.data = torch.rand(3, 20) * 7
    g = torch.randn(3, 20)
    quantizer().backward(g)
    full = quantizer.z.grad.clone()
    for bits in (2, 1):
        quantizer.z.grad = quantizer.v.grad = None
        ReadWeight(quantizer, bits)().backward(g)
        torch.testing.assert_close(quantizer.z.grad, full)
        signs = 2 * (quantizer.codes().long() >> 2) - 1  # of the most significant number
        torch.testing.assert_close(quantizer.v.grad[:, 2], (g * signs).sum(1))
        assert not quantizer.v.grad[:, : 3 - bits].any()


# -- in training -----------------------------------------------------------------------------


def test_widths_share_weights_and_have_their_own_batch_norm_and_ranges(digits_root, tmp_path):
    run = built(digits_root, tmp_path, several())
    full = dict(run.model.named_parameters())
    norms = {
        n for n, m in run.model.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)
    }
    for width in run.widths.lower:
        own = {
            name
            for name, parameter in width.network.named_parameters()
            if not any(parameter is other for other in full.values())
        }
        assert own and {name.rpartition(".")[0] for name in own} == norms
        for name, layer in width.network.named_modules():
            if isinstance(layer, ReadWeight):
                assert layer.whole is run.model.get_submodule(name)
        bits = {row["w_bits"] for row in width.report if row["reason"] == "policy"}
        assert bits == {width.w_bits}
    grouped = [p for group in run.optimizer.param_groups for p in group["params"]]
    trained = list(run.root.parameters())
    assert len(grouped) == len(trained) and {*map(id, grouped)} == {*map(id, trained)}


def test_a_step_adds_the_gradients_of_every_width_as_any_precision_does(digits_root, tmp_path):
    """The slow reference: each width by itself, from copies, with the scores written out."""
    run = built(digits_root, tmp_path, several())
    images, labels = next(iter(run.data.train.epoch(1)))
    slow = copy.deepcopy(run.root).train()
    model, widths = slow[0], slow[1]
    scores = model(images)
    functional.cross_entropy(scores, labels).backward()
    for network in widths.networks:
        target = torch.softmax(scores.detach(), 1)
        scores = network(images)
        (-(target * torch.log_softmax(scores, 1)).sum(1)).mean().backward()
    run.root.train()
    loop.train_step(run, images, labels, 0.0, Sums(CPU))
    for (name, p), q in zip(run.root.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_the_drawn_widths_depend_on_seed_and_step_alone(digits_root, tmp_path):
    run = built(digits_root, tmp_path, several(drawn=1))
    names = {id(width.network): width.w_bits for width in run.widths.lower}
    seen = []
    for step in range(40):
        run.widths.step = step
        [network] = run.widths.draw()
        seen.append(names[id(network)])
    assert set(seen) == {1, 2}
    run.widths.step = 7
    assert [names[id(network)] for network in run.widths.draw()] == seen[7:8]


@pytest.mark.parametrize("method", ("direct", "lq_nets"))
def test_a_run_writes_a_row_for_each_lower_width(method, digits_root, tmp_path):
    final = train(several(method, epochs=1), digits_root, tmp_path)
    folder = tmp_path / "run"
    rows = table(folder / "widths.csv")
    assert [(row["w_bits"], row["a_bits"]) for row in rows] == [("2", "2"), ("1", "1")]
    sizes = [final["size_bytes"], *(int(row["size_bytes"]) for row in rows)]
    assert sizes[0] > sizes[1] > sizes[2]
    assert final["bitops"] > int(rows[0]["bitops"]) > int(rows[1]["bitops"])
    for width in (2, 1):  # the size is that of a network of that width alone
        alone = train(
            config(method, epochs=1, w=width, a=width), digits_root, tmp_path / str(width)
        )
        assert (alone["size_bytes"], alone["bitops"]) == (
            int(rows[2 - width]["size_bytes"]), int(rows[2 - width]["bitops"])
        )  # fmt: skip
    saved = load_tensors(folder / "widths.pt")
    assert saved.keys() == {"W2A2", "W1A1"}
    assert {"widths.csv", "widths.pt"} <= json.loads((folder / "final.json").read_text())[
        "files"
    ].keys()
    run = built(digits_root, tmp_path / "again", several(method))
    run.model.load_state_dict(load_tensors(folder / "weights.pt"))
    for width, row in zip(run.widths.lower, rows, strict=True):
        width.network.load_state_dict(saved[f"W{width.w_bits}A{width.a_bits}"])
        assert evaluate(run, run.data.test, width.network)["top1"] == pytest.approx(
            float(row["top1"])
        )


@pytest.mark.parametrize("epoch, widths", ((1, {}), (1, {"drawn": 1}), (2, {})))
def test_a_killed_and_resumed_run_ends_in_the_same_bytes(
    epoch, widths, digits_root, tmp_path, monkeypatch
):
    settings = several(**widths)
    train(settings, digits_root, tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_after(patch, epoch)
        with pytest.raises(Killed):
            train(settings, digits_root, tmp_path / "killed")
    train(settings, digits_root, tmp_path / "killed")
    folders = [tmp_path / name / "run" for name in ("killed", "whole")]
    assert_same_run(*folders)
    assert len({(folder / "widths.csv").read_bytes() for folder in folders}) == 1
    one, other = (load_tensors(folder / "widths.pt") for folder in folders)
    for label in one:
        assert all(torch.equal(one[label][name], other[label][name]) for name in one[label])


# -- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, bits, lower, others, words",
    (
        ("fp", (32, 32), ["W2A2"], {}, "method 'fp' does not quantize weights"),
        ("pact", (3, 3), ["W2A2"], {}, "method 'pact' cannot be read with fewer bits"),
        ("direct_sign", (3, 3), ["W2A2"], {}, "cannot be read with fewer bits"),
        ("direct", (3, 3), ["W3A3"], {}, "W3A3 follows W3A3"),
        ("direct", (3, 3), ["W2A4"], {}, "W2A4 follows W3A3"),
        ("direct", (4, 4), ["W2A2", "W3A3"], {}, "W3A3 follows W2A2"),
        ("direct", (4, 32), ["W2A2"], {}, "32 only if all have 32"),
        ("direct", (4, 4), ["2"], {}, "not a bit setting"),
        ("direct", (3, 3), ["W2A2"], {"ema": 0.9}, "'ema' cannot have it"),
        ("direct", (3, 3), ["W2A2"], {"drawn": 2}, "drawn is 2: it must be at most 1"),
    ),
)
def test_the_option_is_refused_where_it_makes_no_sense(method, bits, lower, others, words):
    drawn = {"drawn": others.pop("drawn")} if "drawn" in others else {}
    recipe = {"widths": {"lower": lower, **drawn}, "ema": 0, **others}
    with pytest.raises(InputError, match=words):
        check_widths(recipe, baselines.method(method), bits)
