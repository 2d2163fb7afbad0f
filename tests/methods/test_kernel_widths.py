"""A training step and an evaluation with the C++ kernels, at all widths and on signed activations.

test_kernels.py has each kernel alone, and the step of ResNet-20 with one width for all layers.
"""

import subprocess
import sys
from itertools import cycle, product

import pytest
import torch
from kernel_steps import eager_and_kernels
from offered import QUANTIZED, a_width

import baselines
from lowbit_core import models
from lowbit_core.conversion.layers import QuantLayer, calibrate
from lowbit_core.conversion.policy import QuantPolicy, quantizable
from lowbit_core.conversion.swap import convert
from lowbit_core.kernels import fused
from lowbit_core.quantizers import piecewise

# The last images are 2 x 2: those of one pixel have no memory format, from which oneDNN chooses how
# it sums.
NETWORKS = {
    "resnet20": {"width": 8, "stem": "small_stride2"},
    "mobilenetv2": {"width": 0.1, "stem": "small", "repeats": 1, "last_channels": 16},
}
WIDTHS = (3, 8, 1, 2, 4)
pytestmark = pytest.mark.skipif(
    not fused.compiler_found(), reason="no C++ compiler: there are no kernels here"
)


@pytest.fixture(autouse=True)
def _without_kernels_afterwards():
    yield
    fused.set_compile(False)


def quantized(arch, method):
    """(A network whose layers have all widths in turns, calibrated; images; their labels)."""
    torch.manual_seed(0)
    fused.set_compile(True)  # the fits of eight bits take seconds without
    model = models.build(arch, 10, 3, **NETWORKS[arch])
    images = torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    own = {
        name: {"w_bits": a_width(method, bits), "a_bits": bits}
        for name, bits in zip(list(quantizable(model))[1:-1], cycle(WIDTHS), strict=False)
    }
    convert(model, QuantPolicy(method, a_width(method), 2, exceptions=own), images[:1])
    model = model.to(memory_format=torch.channels_last)
    calibrate(model, images)
    return model, images, torch.randint(10, (4,))


@pytest.mark.parametrize("arch", NETWORKS)
@pytest.mark.parametrize("method", QUANTIZED, ids=lambda method: method.name)
def test_a_bfloat16_step_of_all_widths_is_that_of_eager(arch, method):
    """The loss to the bit; gradients but for the order of sums."""
    model, images, labels = quantized(arch, method)
    (eager_loss, eager), (loss, gradients) = eager_and_kernels(model, images, labels)
    assert loss == eager_loss
    largest = max(expected.norm() for expected in eager.values())
    for name, expected in eager.items():
        # The terms of a sum may cancel, above all those of a layer's one scale.
        floor = (1e-6 if expected.numel() == 1 else 1e-8) * largest
        assert (gradients[name] - expected).norm() <= 1e-4 * expected.norm() + floor, name


def test_the_networks_have_signed_and_unsigned_activations_of_all_widths():
    found = {}
    for arch in NETWORKS:
        model, _, _ = quantized(arch, baselines.method("pact"))
        quantizers = [m.activation_quantizer for m in model.modules() if isinstance(m, QuantLayer)]
        found[arch] = {(quantizer.bits, quantizer.signed) for quantizer in quantizers}
    assert found["resnet20"] == {(bits, False) for bits in WIDTHS}
    assert found["mobilenetv2"] == set(product(WIDTHS, (False, True)))


_MANY_PIECES = """
import torch
from lowbit_core.kernels import bindings, fused
from lowbit_core.quantizers.piecewise import quantize_in_pieces
torch.set_num_threads(1)
assert fused.set_compile(True)
for pieces in (129, 160, 257, 258):
    edges, levels = torch.linspace(0, 1, pieces - 1), torch.randn(pieces).sort().values
    for dtype in (torch.float32, torch.bfloat16):
        for size in (1, 255, 5000):
            x = (1.2 * torch.rand(size) - 0.1).to(dtype)
            arguments = x, edges, levels, True, float("inf")
            assert bindings.usable(bindings.quantize_in_pieces, *arguments)
            fast, slow = (f(*arguments) for f in (quantize_in_pieces, quantize_in_pieces.eager))
            assert torch.equal(fast, slow), (pieces, dtype, size)
print("agree")
"""


def test_an_evaluation_of_more_pieces_than_codes_can_name_is_that_of_eager():
    """Eight bits of LSQ, EWGS, APoT, HWGQ or N2UQ; in a process of its own, which might crash."""
    assert piecewise.MAX_PIECES == 128
    done = subprocess.run(
        [sys.executable, "-c", _MANY_PIECES], capture_output=True, text=True, check=False
    )
    assert done.stdout == "agree\n", f"exit {done.returncode}: {done.stderr[-1000:]}"
