"""The C++ kernels and torch.compile's kernels against the functions as they are written."""

import copy
import os
import platform
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_steps import eager_and_kernels
from offered import offered
from torch import nn

import baselines
from baselines.adabin import two_levels, two_levels_gradient
from baselines.dorefa import DoReFaActivation, dorefa_gradient, dorefa_weight
from baselines.pact import PACTActivation
from baselines.ttq import threshold_and_mean_above
from lowbit_core.conversion import swap as convert
from lowbit_core.conversion.layers import QuantLayer, calibrate
from lowbit_core.conversion.policy import QuantPolicy
from lowbit_core.conversion.relu import hand_over_relus
from lowbit_core.kernels import bindings as kernels
from lowbit_core.kernels import build, fused
from lowbit_core.quantizers import basis, blocks, piecewise, ste_mask, uniform
from lowbit_core.quantizers.basis_activation import (
    MOMENTUM,
    VARIANCE_FLOOR,
    WEIGHTINGS,
    BasisActivation,
    quantize,
    quantize_and_sum,
    update_basis,
)
from lowbit_core.quantizers.blocks import as_blocks
from lowbit_core.quantizers.direct import (
    MIN_STEP,
    direct_gradient,
    direct_weight,
    indirect_gradient,
    indirect_weight,
)
from lowbit_core.quantizers.ste_mask import apply_ste_mask, apply_ste_mask_and_sum

LOW_BITS = tuple(range(1, 9))
each_bits = pytest.mark.parametrize("bits", LOW_BITS)
each_sign = pytest.mark.parametrize("signed", (False, True), ids=("unsigned", "signed"))
needs_kernels = pytest.mark.skipif(
    not fused.compiler_found(), reason="no C++ compiler: there are no kernels here"
)
seeds = st.integers(0, 2**31)
# Sizes with whole and broken vectors, one block and many, narrow and wide.
SHAPES = ((2, 3, 5, 5), (4, 16, 8, 8), (3, 9, 4, 4), (7, 21), (1, 1, 1, 1), (64, 8, 16, 16))
ACTIVATIONS = {
    "dorefa": DoReFaActivation,
    "pact": PACTActivation,
    **{f"basis_{w}": partial(BasisActivation, weighting=w) for w in WEIGHTINGS},
}


each_type = pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)


@pytest.fixture(scope="module", autouse=True)
def compiling():
    """Every test here runs kernels, unless it switches them off for itself."""
    yield fused.set_compile(fused.compiler_found())
    fused.set_compile(False)


KERNELS = {
    quantize_and_sum: kernels.quantize_and_sum,
    quantize: kernels.quantize,
    uniform.clip_round: kernels.clip_round,
    uniform.clip_round_with_mask: kernels.clip_round_with_mask,
    apply_ste_mask: kernels.apply_ste_mask,
    apply_ste_mask_and_sum: kernels.apply_ste_mask_and_sum,
    piecewise.quantize_in_pieces: kernels.quantize_in_pieces,
    piecewise.quantize_in_pieces_with_codes: kernels.quantize_in_pieces_with_codes,
    piecewise.pieces_gradient: kernels.pieces_gradient,
}
"""The functions whose kernels take bfloat16."""


def as_tuple(result):
    return (result,) if isinstance(result, torch.Tensor) else result


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn_basis(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return basis.ordered(torch.rand(*shape, generator=generator) + 0.1)


def assert_agree(function, *arguments, exactly=()):
    """Kernel and eager give the same; results of the indices `exactly` to the last bit."""
    assert kernels.usable(KERNELS.get(function), *arguments)
    fast, slow = function(*arguments), function.eager(*arguments)
    for index, (a, b) in enumerate(zip(as_tuple(fast), as_tuple(slow), strict=True)):
        if a is None or index in exactly:
            assert (a is None) == (b is None) and (a is None or torch.equal(a, b)), index
        else:  # sums are taken in another order
            scale = b.abs().max().nan_to_num(1.0).item() + 1
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * scale, equal_nan=True)


@needs_kernels
@each_bits
@each_sign
@each_type
@pytest.mark.parametrize("also_relu", (False, True))
@given(seed=seeds, shape=st.sampled_from(SHAPES), ceiling=st.sampled_from((0.7, torch.inf)))
@settings(max_examples=6)
def test_activation_kernels(bits, signed, dtype, also_relu, seed, shape, ceiling):
    x, v = draw(seed, *shape).to(dtype), drawn_basis(seed, bits)
    x.view(-1)[0] = 0.0
    cut = as_blocks(x)
    assert_agree(quantize_and_sum, cut, v, signed, ceiling, also_relu, exactly=(0, 1, 2))
    assert_agree(quantize, x, v, signed, ceiling, exactly=(0,))
    top = torch.tensor(1.1)
    bottom, levels = torch.tensor(-1.1 if signed else 0.0), 2**bits - 1
    grid = (top, bottom, (top - bottom) / levels, signed, ceiling)
    assert_agree(uniform.clip_round, x, *grid, exactly=(0,))
    assert_agree(uniform.clip_round_with_mask, cut, *grid, also_relu, exactly=(0, 1, 2, 3))
    mask = uniform.clip_round_with_mask(cut, *grid, also_relu)[2]
    relu = draw(seed + 1, *cut.shape).to(dtype) if also_relu else None
    assert_agree(apply_ste_mask, cut, relu, mask, exactly=(0,))
    assert_agree(apply_ste_mask_and_sum, cut, relu, mask, exactly=(0,))


def drawn_pieces(seed, count):
    """Edges and levels of `count` pieces, among them an empty one, and slopes and bends."""
    edges = draw(seed, count - 1).sort().values
    edges[1:2] = edges[:1]
    return edges, draw(seed + 1, count), draw(seed + 2, count, 2), draw(seed + 3, count, 2)


@needs_kernels
@each_sign
@each_type
@pytest.mark.parametrize("pieces", (2, 3, 4, 5, 6, 8, 17, 128))
@pytest.mark.parametrize("also_relu", (False, True))
@given(seed=seeds, shape=st.sampled_from(SHAPES), ceiling=st.sampled_from((0.7, torch.inf)))
@settings(max_examples=6)
def test_piecewise_kernels(pieces, signed, dtype, also_relu, seed, shape, ceiling):
    x, (edges, levels, slope, bend) = draw(seed, *shape).to(dtype), drawn_pieces(seed, pieces)
    x.view(-1)[:1] = 0.0
    relu_of = (signed, ceiling)
    assert_agree(piecewise.quantize_in_pieces, x, edges, levels, *relu_of, exactly=(0,))
    with_codes = piecewise.quantize_in_pieces_with_codes
    assert_agree(with_codes, as_blocks(x), edges, levels, *relu_of, also_relu, exactly=(0, 1, 2, 3))
    cut = as_blocks(x)
    codes = with_codes(cut, edges, levels, *relu_of, also_relu)[2]
    g = draw(seed + 4, *cut.shape).to(dtype)
    relu = draw(seed + 5, *cut.shape).to(dtype) if also_relu else None
    for tilt, bends, reads_x in (
        (slope, bend, True),
        (slope, None, True),
        (slope[:, 0].contiguous(), bend, True),
        (slope[:, 0].contiguous(), None, True),
        (slope[:, 0].contiguous(), None, False),
    ):
        inputs = (g, relu, codes, cut if reads_x else None, tilt, bends, *relu_of)
        assert_agree(piecewise.pieces_gradient, *inputs)
        if reads_x:  # the pieces are found from x again
            inputs = (g, relu, None, cut, tilt, bends, *relu_of, edges)
            for squares in (False, True):
                assert_agree(piecewise.pieces_gradient, *inputs, squares)


@needs_kernels
@each_sign
@each_type
@pytest.mark.parametrize("pieces", (129, 256, 257, 512))
@given(seed=seeds, shape=st.sampled_from(SHAPES), ceiling=st.sampled_from((0.7, torch.inf)))
@settings(max_examples=6)
def test_kernels_of_more_pieces_than_codes(pieces, signed, dtype, seed, shape, ceiling):
    """As test_piecewise_kernels: the piece of a value is found by halving, and no code is kept."""
    x, (edges, levels, slope, bend) = draw(seed, *shape).to(dtype), drawn_pieces(seed, pieces)
    x.view(-1)[:2] = torch.tensor([0.0, torch.inf])[: x.numel()].to(dtype)
    relu_of = (signed, ceiling)
    assert_agree(piecewise.quantize_in_pieces, x, edges, levels, *relu_of, exactly=(0,))
    cut, flags = as_blocks(x), (True, False)
    with_codes = piecewise.quantize_in_pieces_with_codes
    assert_agree(with_codes, cut, edges, levels, *relu_of, *flags, exactly=(0, 1, 2, 3))
    cut = as_blocks(draw(seed, *shape).to(dtype))
    g, relu = draw(seed + 4, *cut.shape).to(dtype), draw(seed + 5, *cut.shape).to(dtype)
    for tilt in (slope, slope[:, 0].contiguous()):
        for bends in (bend, None):
            inputs = (g, relu, None, cut, tilt, bends, *relu_of, edges)
            for squares in (False, True):
                assert_agree(piecewise.pieces_gradient, *inputs, squares)


@pytest.mark.parametrize("pieces", (3, 200))
def test_the_gradient_of_pieces_is_the_sum_over_each_piece(pieces):
    """In float64, against autograd of the linear form; 200 pieces are too many for codes."""
    edges, levels, slope, _ = (t.double() for t in drawn_pieces(7, pieces))
    offset, gain, curve = (draw(seed, pieces).double().requires_grad_() for seed in (1, 2, 5))
    x, g = draw(3, 4, 3, 5, 5).double().requires_grad_(), draw(4, 4, 3, 5, 5).double()
    table = piecewise.Pieces(edges, levels, offset, gain, slope[:, 0], curve=curve)
    y, not_finite = piecewise.quantize_pieces(x, table, signed=True)
    found = torch.autograd.grad(y, (x, offset, gain, curve), g)
    piece = torch.bucketize(x.detach(), edges)
    assert torch.equal(y, levels[piece]) and not not_finite
    at = x.detach()
    form = offset[piece] + gain[piece] * at + curve[piece] * at**2 + slope[piece, 0] * (x - at)
    for one, other in zip(
        found, torch.autograd.grad(form, (x, offset, gain, curve), g), strict=True
    ):
        torch.testing.assert_close(one, other)


@needs_kernels
@each_bits
@each_sign
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_basis_update_kernel(bits, signed, weighting):
    for seed, shape in enumerate(SHAPES):
        x = draw(seed, *shape) * torch.logspace(-1, 1, shape[1]).view(-1, *[1] * (len(shape) - 2))
        x[:, 0] = 0.0  # a dead channel
        v, size = drawn_basis(seed, bits), x.numel() // shape[1]
        sums = quantize_and_sum.eager(as_blocks(x), v, signed)[3]
        rest = (shape[1], size, weighting, signed)
        assert_agree(update_basis, sums, v, *rest, exactly=(1,))
        x.view(-1)[0] = torch.nan
        sums = quantize_and_sum.eager(as_blocks(x), v, signed)[3]
        new, bad = update_basis(sums, v, *rest)
        assert bad and torch.equal(new, v)


@needs_kernels
@each_bits
@given(seed=seeds, rows=st.integers(1, 9), size=st.sampled_from((1, 7, 8, 27, 5000)))
@settings(max_examples=10)
def test_weight_kernels(bits, seed, rows, size):
    w, g, v = draw(seed, rows, size), draw(seed + 1, rows, size), drawn_basis(seed, rows, bits)
    z = torch.rand(rows, size, generator=torch.Generator().manual_seed(seed)) * (2**bits + 3) - 2
    unordered = v.flip(1).contiguous()
    assert_agree(basis.quantize_rows, w, v, exactly=(0,))
    fast, slow = basis.refit_rows(w, v), basis.refit_rows.eager(w, v)
    assert torch.equal(fast[0], slow[0])
    if size > 1000:  # of fewer values the fit is ill-conditioned: the last digits are amplified
        torch.testing.assert_close(fast[1], slow[1], rtol=1e-3, atol=1e-3)
    assert_agree(direct_weight, z, unordered, exactly=(0, 1))
    assert_agree(direct_gradient, g, z, v)
    assert_agree(indirect_weight, w, unordered, exactly=(0, 1))
    assert_agree(indirect_gradient, g, w, v)
    assert_agree(dorefa_weight, w, torch.tensor(2.0**bits - 1))
    assert_agree(dorefa_gradient, g, w)
    assert_agree(threshold_and_mean_above, w, bits / 10)
    assert_agree(two_levels, w)
    assert_agree(two_levels_gradient, g, w, *two_levels(w)[1:], torch.tensor(10.0 ** (bits - 4)))


@needs_kernels
@pytest.mark.parametrize("bad", (torch.nan, torch.inf, -torch.inf), ids=str)
@each_sign
@each_type
def test_kernels_let_what_is_not_finite_through_as_eager_does(bad, signed, dtype):
    x, v = draw(1, 4, 8, 5, 5).to(dtype), drawn_basis(1, 2)
    x[1, 2, 3, 3] = bad
    grid = (torch.tensor(1.0), torch.tensor(-1.0 if signed else 0.0), torch.tensor(0.3), signed)
    for function, arguments in (
        (quantize_and_sum, (as_blocks(x), v, signed, torch.inf, True)),
        (uniform.clip_round_with_mask, (as_blocks(x), *grid, torch.inf, True)),
        (quantize, (x, v, signed, torch.inf)),
        (uniform.clip_round, (x, *grid, torch.inf)),
        (piecewise.quantize_in_pieces, (x, *drawn_pieces(1, 4)[:2], signed, torch.inf)),
        (piecewise.quantize_in_pieces, (x, *drawn_pieces(1, 300)[:2], signed, torch.inf)),
    ):
        fast, slow = function(*arguments), function.eager(*arguments)
        for a, b in zip(as_tuple(fast), as_tuple(slow), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5, equal_nan=True)
    w = draw(2, 3, 40)
    w[1, 7] = bad
    rows = drawn_basis(2, 3, 2)
    for function, arguments in (
        (direct_weight, (w, rows)),
        (indirect_weight, (w, rows)),
        (basis.quantize_rows, (w, rows)),
        (dorefa_weight, (w, torch.tensor(3.0))),
        (threshold_and_mean_above, (w, 0.7)),
        (two_levels, (w,)),
        (two_levels_gradient, (w, w, *two_levels(w)[1:], torch.tensor(2.0))),
    ):
        fast, slow = function(*arguments), function.eager(*arguments)
        for a, b in zip(as_tuple(fast), as_tuple(slow), strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


def outputs_of_every_kernel():
    """What the kernels give for some float32 and bfloat16 tensors."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for bits in (1, 2, 3, 8):
            for signed in (False, True):
                x, v = draw(bits, 6, 11, 9, 9).to(dtype), drawn_basis(bits, bits)
                x[0, 0, 0, :3] = torch.tensor([torch.nan, torch.inf, 3e-39]).to(dtype)
                grid = (torch.tensor(1.1), torch.tensor(-1.1 if signed else 0.0))
                grid += (torch.tensor(0.3), signed, 0.7)
                y, relu, mask, sums = quantize_and_sum(as_blocks(x), v, signed, 0.7, True)
                found += [y, relu, mask, sums, quantize(x, v, signed)]
                found += uniform.clip_round_with_mask(as_blocks(x), *grid, True)
                found += apply_ste_mask_and_sum(y, relu, found[-2])
                found += update_basis(sums[:, :, :11], v, 11, 486, "inverse_variance", signed)
                edges, levels, slope, bend = drawn_pieces(bits, max(2, 2**bits // 2))
                pieces = (edges, levels, signed, 0.7)
                y, relu, codes, bad = piecewise.quantize_in_pieces_with_codes(
                    as_blocks(x), *pieces, True
                )
                found += [y, relu, codes, bad, piecewise.quantize_in_pieces(x, *pieces)]
                inputs = (y, relu, codes, as_blocks(x), slope, bend, signed, 0.7)
                found += piecewise.pieces_gradient(*inputs)[:3]
                inputs = (y, relu, None, *inputs[3:], edges, True)
                found += piecewise.pieces_gradient(*inputs)
                edges, levels, slope, bend = drawn_pieces(bits, 300)  # too many for codes
                found.append(piecewise.quantize_in_pieces(x, edges, levels, signed, 0.7))
                inputs = (y, relu, None, as_blocks(x), slope, bend, signed, 0.7, edges, True)
                found += piecewise.pieces_gradient(*inputs)
    w, g, v = draw(1, 7, 83), draw(2, 7, 83), drawn_basis(3, 7, 3)
    for function, arguments in (
        (basis.refit_rows, (w, v)),
        (direct_weight, (4 * w, v)),
        (direct_gradient, (g, 4 * w, v)),
        (indirect_gradient, (g, w, v)),
        (dorefa_weight, (w, torch.tensor(7.0))),
        (dorefa_gradient, (g, w)),
        (threshold_and_mean_above, (draw(4, 150, 83), 0.7)),
        (two_levels, (w,)),
        (two_levels_gradient, (g, w, *two_levels(w)[1:], torch.tensor(2.0))),
    ):
        found += as_tuple(function(*arguments))
    return found


@needs_kernels
@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names levels of x86-64")
@pytest.mark.parametrize("level", ("x86-64-v2", "x86-64-v3", "x86-64-v4"))
def test_results_do_not_depend_on_the_width_of_vectors(level, monkeypatch):
    if level == "x86-64-v4" and "avx512bw" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX-512")
    native = outputs_of_every_kernel()
    monkeypatch.setenv(build.TARGET, level)
    build.library.cache_clear()
    try:
        assert build.library() is not None
        for index, (a, b) in enumerate(zip(native, outputs_of_every_kernel(), strict=True)):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=str(index))
    finally:
        build.library.cache_clear()


@needs_kernels
def test_results_do_not_depend_on_the_number_of_threads():
    x, v, w = draw(1, 64, 16, 16, 16), drawn_basis(1, 3), draw(2, 64, 576)
    rows, results = drawn_basis(2, 64, 3), []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y, _, mask, sums = quantize_and_sum(as_blocks(x), v, False)
        results.append(
            (y, sums, apply_ste_mask_and_sum(y, None, mask)[1], *basis.refit_rows(w, rows))
            + update_basis(sums, v, 16, 16384, "equal", False)
        )
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_constants_of_the_kernels_are_those_of_python():
    source = "".join(
        path.read_text() for path in build.FOLDER.iterdir() if path.suffix in (".cpp", ".h")
    )
    constants = {
        "RIDGE": basis.RIDGE, "MOMENTUM": MOMENTUM, "VARIANCE_FLOOR": VARIANCE_FLOOR,
        "MIN_STEP": MIN_STEP, "QUANTIZER_PASSES": ste_mask.QUANTIZER_PASSES,
        "ABOVE_RANGE": ste_mask.ABOVE_RANGE, "RELU_PASSES": ste_mask.RELU_PASSES,
        "BELOW_RANGE": ste_mask.BELOW_RANGE, "MAX_ROWS": blocks.MAX_ROWS,
        "MAX_PIECES": piecewise.MAX_PIECES, "RELU_BIT": piecewise.MAX_PIECES,
    }  # fmt: skip
    for name, value in constants.items():
        [found] = re.findall(rf"\b{name} = ([0-9.e-]+)", source)
        assert float(found) == value, name
    order = re.search(r"enum Weighting \{ (.*) \};", source)[1].lower().split(", ")
    assert {name: index for index, name in enumerate(order)} == kernels.WEIGHTINGS


# -- the ReLU that a quantizer does ----------------------------------------------------------


@pytest.mark.parametrize("kind", ACTIVATIONS)
@each_bits
@pytest.mark.parametrize("compiled", (False, pytest.param(True, marks=needs_kernels)))
@pytest.mark.parametrize("also_relu", (False, True))
@pytest.mark.parametrize("relu", (nn.ReLU(), nn.ReLU6()), ids=("relu", "relu6"))
def test_a_quantizer_does_the_relu_before_it(kind, bits, compiled, also_relu, relu):
    """Q(x) and all gradients are those of relu(x) handed to the same quantizer."""
    fused.set_compile(compiled)
    try:
        x = 4 * draw(bits, 6, 5, 4, 4).contiguous(memory_format=torch.channels_last)
        x[0, 0, 0, :3] = torch.tensor([0.0, 6.0, -1.0])
        quantizer = ACTIVATIONS[kind](bits, False)
        reference = copy.deepcopy(quantizer)
        quantizer.ceiling = 6.0 if isinstance(relu, nn.ReLU6) else torch.inf
        quantizer.calibrate(x)
        reference.calibrate(relu(x))
        torch.testing.assert_close(quantizer.levels(), reference.levels())
        g, g_relu = draw(1, *x.shape), draw(2, *x.shape)
        one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
        between = relu(two)
        expected = reference(between)
        if also_relu:
            r, y = quantizer(one, also_relu=True)
            torch.testing.assert_close(r, between)
            torch.autograd.backward((y, r), (g, g_relu))
            torch.autograd.backward((expected, between), (g, g_relu))
        else:
            y = quantizer(one)
            y.backward(g)
            expected.backward(g)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(one.grad, two.grad)
        torch.testing.assert_close(quantizer.levels(), reference.levels())
        for (name, a), (_, b) in zip(
            quantizer.named_parameters(), reference.named_parameters(), strict=True
        ):
            torch.testing.assert_close(a.grad, b.grad, msg=name)
        with torch.no_grad():
            torch.testing.assert_close(quantizer.eval()(x), reference.eval()(relu(x)))
            if also_relu:
                torch.testing.assert_close(quantizer(x, also_relu=True)[0], relu(x))
    finally:
        fused.set_compile(fused.compiler_found())


def chain():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False),
        nn.Sequential(nn.BatchNorm2d(8), nn.ReLU6()),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 12),
        nn.ReLU(),
        nn.Linear(12, 4),
    )
    net.signed_inputs = frozenset({"0", "3"})
    return net


@pytest.mark.parametrize("name", ("direct", "pact", "dorefa"))
def test_a_chain_hands_its_relus_over_and_stays_the_same(name, monkeypatch):
    images = draw(3, 16, 1, 12, 12)
    results = []
    for hand_over in (hand_over_relus, lambda model: None):
        net = chain()
        monkeypatch.setattr(convert, "hand_over_relus", hand_over)
        convert.convert(net, QuantPolicy(baselines.method(name), 2, 2), images[:1])
        calibrate(net, images)
        relus = [n for n, m in net.named_modules() if isinstance(m, nn.ReLU | nn.ReLU6)]
        loss = net(images).square().sum()
        loss.backward()
        gradients = {n: p.grad for n, p in net.named_parameters()}
        results.append((relus, loss.detach(), gradients, net.state_dict()))
    (handed, loss, gradients, state), (kept, *expected) = results
    # An average pool does not let a ReLU through; what reads the last one is not quantized.
    assert handed == ["8", "14"] and kept == ["1.1", "5", "8", "11", "14"]
    torch.testing.assert_close(loss, expected[0])
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[1][key], rtol=1e-4, atol=1e-5)
    for key, value in state.items():
        torch.testing.assert_close(value, expected[2][key], rtol=1e-4, atol=1e-5)


def test_a_method_that_does_no_relu_gets_one():
    """A quantizer that only defines forward(x), and knows nothing of ReLUs, is given relu(x)."""

    class Seen(nn.Module):
        DOES_RELU, signed, calibrating = False, False, False

        def forward(self, x):
            assert (x >= 0).all()
            return x

    from lowbit_core import models

    model = models.build("resnet20", 10, 1, width=8, stem="small_stride2")
    for block in model.blocks:
        for name in ("conv1", "conv2"):
            layer = getattr(block, name)
            setattr(block, name, QuantLayer(layer, None, Seen()))
    model(draw(1, 2, 1, 28, 28))


# -- where there is no compiler, or no kernel ------------------------------------------------


def test_without_a_compiler_quantizers_run_uncompiled_with_a_warning(monkeypatch, capsys):
    monkeypatch.setattr(fused, "compiler_found", lambda: False)
    assert fused.set_compile(True) is False
    monkeypatch.undo()
    assert "no C++ compiler" in capsys.readouterr().err
    monkeypatch.setattr(kernels, "library", None)  # whoever calls it fails
    z, v = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0]])
    assert direct_weight(z, v)[0].tolist() == [[-1.0, 1.0]]
    assert direct_gradient(torch.ones(1, 2), z, v)[1].item() == 0
    monkeypatch.undo()
    fused.set_compile(fused.compiler_found())


@needs_kernels
@pytest.mark.parametrize("name", ("basis.h", "weights.cpp"))
def test_an_edit_of_any_source_makes_another_library(name, monkeypatch, tmp_path):
    """No stale library: its name hashes every source and header."""
    folder = tmp_path / "sources"
    shutil.copytree(build.FOLDER, folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = ("-std=c++17", "-fopenmp", "-shared", "-fPIC")
    first = build.built(folder, "kernels", flags)
    assert build.built(folder, "kernels", flags) == first
    (folder / name).write_text((folder / name).read_text() + "// edited\n")
    assert build.built(folder, "kernels", flags) != first


def test_a_build_that_fails_is_one_sentence_and_no_crash(monkeypatch, capsys, tmp_path):
    (tmp_path / "broken.cpp").write_text("this is no C++")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    build.library.cache_clear()
    try:
        assert build.library() is None
    finally:
        build.library.cache_clear()
    message = capsys.readouterr().err
    assert message.startswith("warning: the quantizers' kernels cannot be built: ")
    assert message.count("\n") == 1
    assert not list((tmp_path / "lowbit-bench").glob("*.so"))


_COMPILED = """
import torch
from baselines.adabin import two_levels, two_levels_gradient
from baselines.ttq import threshold_and_mean_above
from lowbit_core.quantizers import basis, piecewise, ste_mask, uniform
from lowbit_core.quantizers.blocks import as_blocks
from lowbit_core.quantizers.basis_activation import quantize_and_sum, update_basis
from lowbit_core.quantizers.direct import direct_gradient, direct_weight
from lowbit_core.quantizers.ste_mask import apply_ste_mask
torch.manual_seed(0)
w, v, z = torch.randn(6, 90), basis.ordered(torch.rand(6, 2) + 0.2), 6 * torch.rand(6, 90) - 2
x, one = as_blocks(torch.randn(8, 5, 7, 7)), basis.ordered(torch.rand(2) + 0.2)
top, zero, step = torch.tensor(0.8), torch.tensor(0.0), torch.tensor(0.8 / 3)
_, _, mask, sums = quantize_and_sum(x, one, False)
edges, levels, slope = torch.tensor([0.2, 0.5, 0.9]), torch.rand(4), torch.rand(4, 2)
codes = piecewise.quantize_in_pieces_with_codes(x, edges, levels, False, 6.0, True)[2]
for function, arguments in (
    (basis.refit_rows, (w, v)), (direct_weight, (z, v)), (direct_gradient, (w, z, v)),
    (quantize_and_sum, (x, one, False, torch.inf, True)), (apply_ste_mask, (x, x, mask)),
    (uniform.clip_round_with_mask, (x, top, zero, step, False, 6.0, True)),
    (piecewise.quantize_in_pieces_with_codes, (x, edges, levels, False, 6.0, True)),
    (piecewise.pieces_gradient, (x, x, codes, x, slope, None, False, 6.0)),
    (update_basis, (sums, one, 5, 392, "inverse_variance", False)),
    (two_levels, (w,)), (two_levels_gradient, (z, w, *two_levels(w)[1:], torch.tensor(2.0))),
    (threshold_and_mean_above, (w, 0.7)),
):
    fast = torch.compile(function.eager, dynamic=True, fullgraph=True)(*arguments)
    slow = function.eager(*arguments)
    for a, b in zip(*((t,) if isinstance(t, torch.Tensor) else t for t in (fast, slow))):
        # Sums over a channel are taken in another order.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)
print("agree")
"""


@pytest.mark.slow  # most of a minute on a machine that never compiled them
@needs_kernels
def test_what_the_compiler_makes_for_gpus_agrees_with_eager_functions():
    """Made for the processor here, by the same compiler from the same functions."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _COMPILED],
        env=environment,
        timeout=600,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "agree\n", done.stderr[-2000:]


@needs_kernels
@pytest.mark.parametrize(("method", "bits"), offered(1, 2, 4))
def test_a_bfloat16_step_with_kernels_is_that_of_eager(method, bits):
    """The loss to the bit; gradients but for the order of sums."""
    from lowbit_core import models

    torch.manual_seed(0)
    model = models.build("resnet20", 10, 3, width=8)
    images = torch.randn(8, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (8,))
    convert.convert(model, QuantPolicy(method, bits, bits), images[:1])
    model = model.to(memory_format=torch.channels_last)
    calibrate(model, images)
    (eager_loss, eager), (loss, gradients) = eager_and_kernels(model, images, labels)
    assert loss == eager_loss
    # The terms of a scale that batch norm undoes cancel: their sum is as exact as the terms are.
    largest = max(expected.norm() for expected in eager.values())
    for name, expected in eager.items():
        # One number for a layer is a sum over all its values, only as exact as float32 is.
        floor = (1e-8 if expected.dim() else torch.finfo(torch.float32).eps) * largest
        assert (gradients[name] - expected).norm() <= 1e-4 * expected.norm() + floor, name
