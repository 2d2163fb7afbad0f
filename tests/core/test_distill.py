"""What a run takes from trained runs: teachers (their loss, their mixture), and a start."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import config
from torch import nn

import baselines
from lowbit_core.conversion.layers import QuantLayer
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.run_folder import load_tensors
from lowbit_core.training import state
from lowbit_core.training.build import Place, build_run
from lowbit_core.training.run import train_run
from lowbit_core.training.trained import Teachers, distillation_loss, float_weight

STARTED = {"pretrained": "start"}
OPTION = {"teacher": "pretrained", "weight": 0.5, "temperature": 2.0}
CPU = torch.device("cpu")


class Killed(BaseException):
    """Stands for a signal that ends the process."""


def key(letter: str) -> str:
    return letter * 64


@pytest.fixture(scope="module")
def runs(digits_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders: a checkpoint, one of a wider network, and two methods at W3A3."""
    folder = tmp_path_factory.mktemp("trained")
    wide = {"arch_options": {"width": 4, "stem": "small_stride2"}}
    for settings in (
        config("fp", "start", key("c"), epochs=2),
        config("fp", "wide", key("d"), epochs=2, **wide),
        config("direct", "direct3", key("e"), w=3, a=3, epochs=1, **STARTED),
        config("dorefa", "dorefa3", key("f"), w=3, a=3, epochs=1, **STARTED),
    ):
        train(settings, digits_root, folder)
    return folder


def train(settings: dict, root: Path, folder: Path) -> dict:
    return train_run(settings, baselines.method(settings["method"]), Place(root, folder, CPU))


def built(settings: dict, root: Path, folder: Path):
    return build_run(settings, baselines.method(settings["method"]), Place(root, folder, CPU))


def distilled(run_id: str, teachers: list[str], method: str = "direct", **option: object) -> dict:
    settings = config(method, run_id, teachers=teachers, epochs=2, **STARTED)
    settings["recipe"] = settings["recipe"] | {"distill": OPTION | option}
    return settings


# -- the loss ---------------------------------------------------------------------------------


def test_golden_loss():
    """By hand: T = 2, s = (0, 2 ln 3), t = (2 ln 3, 0): p = (3/4, 1/4), q = (1/4, 3/4)."""
    two_log_three = 2 * torch.log(torch.tensor(3.0, dtype=torch.float64))
    scores, taught = torch.zeros(2, 1, 2, dtype=torch.float64)
    scores[0, 1] = taught[0, 0] = two_log_three
    expected = 4 * (0.75 * torch.log(torch.tensor(3.0)) - 0.25 * torch.log(torch.tensor(3.0)))
    assert distillation_loss(scores, taught, 2.0).item() == pytest.approx(expected.item())


@given(
    st.integers(0, 1000), st.integers(1, 5), st.integers(2, 7), st.floats(0.25, 8)
)  # fmt: skip
def test_loss_and_gradient_are_the_closed_form(seed, batch, classes, temperature):
    """dL/ds = T (softmax(s/T) - softmax(t/T)) / B; the loss is 0 exactly where they are equal."""
    draw = torch.Generator().manual_seed(seed)
    scores, taught = torch.randn(2, batch, classes, generator=draw, dtype=torch.float64) * 3
    scores.requires_grad_()
    loss = distillation_loss(scores, taught, temperature)
    loss.backward()
    p, q = ((x / temperature).softmax(1) for x in (taught, scores.detach()))
    assert loss.item() == pytest.approx(
        temperature**2 * (p * (p / q).log()).sum().item() / batch, abs=1e-9
    )
    torch.testing.assert_close(scores.grad, temperature * (q - p) / batch)
    assert distillation_loss(taught + 5, taught, temperature).item() == pytest.approx(0, abs=1e-9)


def test_the_mixture_learns_from_its_own_cross_entropy_alone():
    """pi gets the gradient of CE(mixture, labels); the student's loss gives it none."""
    torch.manual_seed(1)
    networks = [nn.Linear(3, 4) for _ in range(3)]
    teachers = Teachers(networks, {"weight": 0.25, "temperature": 3.0}, CPU)
    teachers.pi.data = torch.tensor([0.3, -0.2, 0.5])
    images, labels = torch.randn(6, 3), torch.randint(4, (6,))
    scores = torch.randn(6, 4, requires_grad=True)
    hard = nn.functional.cross_entropy(scores, labels)
    loss = teachers.loss(hard, scores, images, labels)
    loss.backward()
    # The closed form: dCE/dpi_i = w_i (g . t_i - sum_j w_j g . t_j), g = (softmax(z) - y) / B.
    each = torch.stack([network(images) for network in networks]).detach()
    w = teachers.pi.detach().softmax(0)
    z = (w[:, None, None] * each).sum(0)
    g = (z.softmax(1) - nn.functional.one_hot(labels, 4)) / 6
    along = (each * g).sum((1, 2))
    torch.testing.assert_close(teachers.pi.grad, w * (along - (w * along).sum()))
    soft = distillation_loss(scores, z, 3.0)
    torch.testing.assert_close(loss, 0.75 * hard + 0.25 * soft)
    assert all(p.grad is None and not p.requires_grad for n in networks for p in n.parameters())
    assert [group["lr_scale"] for group in teachers.groups()] == [0.1]
    assert sum(teachers.shares()) == pytest.approx(1)


# -- a run with teachers ----------------------------------------------------------------------


def test_a_teacher_changes_the_weights_and_neither_its_own_nor_what_is_drawn(digits_root, runs):
    final = train(distilled("taught", ["start"]), digits_root, runs)
    plain = config("direct", "plain", epochs=2, **STARTED)
    train(plain, digits_root, runs)
    taught, untaught = (load_tensors(runs / name / "weights.pt") for name in ("taught", "plain"))
    assert final["status"] == "done" and final["teacher_weights"] == [1.0]
    assert any(not torch.equal(taught[name], untaught[name]) for name in taught)
    rows = [(runs / name / "weight_state.csv").read_text().splitlines()[1] for name in
            ("taught", "plain")]  # fmt: skip
    assert rows[0] == rows[1]  # before training nothing differs: the same start and calibration
    assert json.loads((runs / "taught" / "config.json").read_text())["recipe"]["distill"] == OPTION
    run = built(distilled("again", ["start"]), digits_root, runs)
    (teacher,) = run.teachers.networks
    assert not any(module.training for module in teacher.modules())
    pretrained = load_tensors(runs / "start" / "weights.pt")
    assert all(torch.equal(value, pretrained[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize(
    "teachers", (["start"], ["start", "wide", "direct3"]), ids=("one", "several")
)
def test_a_kill_and_a_resume_give_the_same_bytes(teachers, digits_root, runs, monkeypatch):
    names = [f"{word}{len(teachers)}" for word in ("whole", "killed")]
    whole, killed = (distilled(name, teachers) for name in names)
    first = train(whole, digits_root, runs)
    with monkeypatch.context() as patch:
        save = state.save

        def stop(run, epoch, *arguments):
            save(run, epoch, *arguments)
            if epoch == 1:
                raise Killed

        patch.setattr(state, "save", stop)
        with pytest.raises(Killed):
            train(killed, digits_root, runs)
    second = train(killed, digits_root, runs)
    one, two = (load_tensors(runs / name / "weights.pt") for name in names)
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    for table in ("metrics.csv", "weight_state.csv"):
        assert (runs / names[0] / table).read_bytes() == (runs / names[1] / table).read_bytes()
    assert first["teacher_weights"] == second["teacher_weights"]
    assert len(set(first["teacher_weights"])) == len(teachers)  # of several, they were learned


def test_a_teacher_that_is_missing_is_named(digits_root, runs):
    with pytest.raises(InputError, match=r"nobody/config.json is missing: rerun the job"):
        train(distilled("lost", ["nobody"]), digits_root, runs)
    assert not (runs / "nobody").exists()


# -- a start from a trained run ---------------------------------------------------------------


@pytest.mark.parametrize("method", ("direct", "dorefa"))
def test_a_start_carries_over_what_docs_say(method, digits_root, runs):
    settings = config(method, "lower", predecessor=f"{method}3", **STARTED)
    run = built(settings, digits_root, runs)
    before = built(config(method, "x", w=3, a=3, **STARTED), digits_root, runs)
    trained = load_tensors(runs / f"{method}3" / "weights.pt")
    before.model.load_state_dict(trained)
    pretrained = load_tensors(runs / "start" / "weights.pt")
    fresh = run.model.state_dict()
    layers = dict(before.model.named_modules())
    for name, layer in run.model.named_modules():
        if isinstance(layer, QuantLayer):
            float_before = float_weight(layers[name].weight_quantizer).detach()
            if method == "dorefa":  # the shadow weight itself, not its tanh
                assert torch.equal(layer.weight_quantizer.weight, float_before)
                assert not torch.equal(layer.weight_quantizer.latent(), float_before)
            expected = baselines.method(method).weight(
                float_before.view(layer.weight_quantizer.shape), 2
            )
            for key_, value in expected.state_dict().items():
                assert torch.equal(value, layer.weight_quantizer.state_dict()[key_]), (name, key_)
    same = [n for n in fresh if n in pretrained]  # batch norm, biases, first and last layer
    assert len(same) > 5 and all(torch.equal(fresh[n], trained[n]) for n in same)
    assert not all(torch.equal(trained[n], pretrained[n]) for n in same)


def test_weights_that_others_load_are_made_again_if_they_are_missing(digits_root, tmp_path):
    place, settings = Place(digits_root, tmp_path, CPU), config("fp", "start", epochs=1)
    train_run(settings, baselines.method("fp"), place)
    other = config("pact", "other", key("b"), epochs=1, **STARTED)
    train_run(other, baselines.method("pact"), place)
    weights = tmp_path / "other" / "weights.pt"
    content = weights.read_bytes()
    weights.unlink()
    train_run(other, baselines.method("pact"), place)
    assert not weights.exists()
    train_run(other, baselines.method("pact"), place, is_loaded=True)
    assert weights.read_bytes() == content


@pytest.mark.parametrize("name", [m.name for m in baselines.METHODS.values() if m.weight])
def test_the_float_weight_of_a_new_quantizer_is_what_it_was_made_from(name):
    """So a start loses nothing; without a shadow weight little, and more without any latent."""
    method, weight = baselines.method(name), 0.05 * torch.randn(8, 4, 3, 3)
    quantizer = method.weight(weight.clone(), 2 if method.offers(2) else method.w_bits[0])
    found = float_weight(quantizer).detach().view(quantizer.shape)
    if "weight" in dict(quantizer.named_parameters()):
        assert torch.equal(found, weight)
    most = 0.4 if name in ("direct_sign", "direct_flip") else 0.25
    assert (found - weight).abs().mean() < most * weight.std()
