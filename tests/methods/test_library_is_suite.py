"""The library entry quantizes the suites' networks as the suites do: equal to the bit.

A suite declares which inputs can be negative (`signed_inputs`) and converts by an image of zeros;
`baselines.quantize` sees it on the example batch.
"""

import pytest
import torch
from offered import a_width
from torch.nn import functional

import baselines
from lowbit_core import models
from lowbit_core.conversion.layers import calibrate
from lowbit_core.conversion.policy import QuantPolicy
from lowbit_core.conversion.swap import convert
from lowbit_core.training.schedule import parameter_groups

NETWORKS = {
    "resnet20": {"width": 8, "stem": "small"},
    "alexnet": {"width": 4, "stem": "small_stride2"},
    "mobilenetv2": {"width": 0.25, "stem": "small", "repeats": 1, "last_channels": 32},
}
# One of each kind of activations that tells signed inputs from unsigned ones.
METHODS = ("direct", "lq_nets", "lsq_plus", "n2uq", "pact", "hwgq", "apot", "adabin", "ttq")
EDGES = {"first_last": "8bit", "shortcut": "fp"}
CASES = [*((name, {}) for name in METHODS), *((name, EDGES) for name in ("direct", "lsq_plus"))]


def network(arch):
    torch.manual_seed(0)
    model = models.build(arch, 10, 3, **NETWORKS[arch])
    return model.to(memory_format=torch.channels_last)


def batch():
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return images.contiguous(memory_format=torch.channels_last), torch.arange(8)


def as_a_suite(arch, method, bits, policy):
    """(The network, its report), as `training.build` makes it; its order of calls included."""
    model = network(arch)
    report = convert(model, QuantPolicy(method, *bits, **policy), torch.zeros(1, 3, 16, 16))
    model = model.to(memory_format=torch.channels_last)
    calibrate(model, batch()[0])
    return model, report


def by_the_library(arch, method, bits, policy):
    model = network(arch)
    del model.signed_inputs
    report = baselines.quantize(model, method, f"W{bits[0]}A{bits[1]}", batch()[0], **policy)
    return model, report


def step(model):
    """The loss, the outputs, and every gradient and state after one step of training."""
    images, labels = batch()
    optimizer = torch.optim.SGD(parameter_groups(model, 0.1), lr=0.1, momentum=0.9)
    y = model.train()(images)
    loss = functional.cross_entropy(y, labels)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    optimizer.step()
    return {"loss": loss, "y": y, **gradients}, model.state_dict()


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("arch", NETWORKS)
@pytest.mark.parametrize(("name", "policy"), CASES, ids=str)
def test_a_network_of_the_library_is_that_of_a_suite(arch, name, policy):
    method = baselines.method(name)
    bits = a_width(method), 1 if name == "adabin" else 2
    (suite, reported), (library, seen) = (
        made(arch, method, bits, policy) for made in (as_a_suite, by_the_library)
    )
    assert reported == seen
    assert {row["layer"] for row in seen if row["signed"]} == set(suite.signed_inputs)
    assert [type(m) for m in suite.modules()] == [type(m) for m in library.modules()]
    assert_same(suite.state_dict(), library.state_dict())
    for found, expected in zip(step(library), step(suite), strict=True):
        assert_same(found, expected)
    assert torch.equal(suite.eval()(batch()[0]), library.eval()(batch()[0]))
