"""The plain ONNX form, computed by onnxruntime."""

import numpy as np
import pytest
from small_networks import CHANNELS, SIDE, about, every_operation, network, quantized

import baselines
from deploy.export.onnx import onnx_model
from deploy.export.trace import trace
from deploy.export.verify import verify
from deploy.network import Network

pytest.importorskip("onnx", reason="the package onnx is needed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the package onnxruntime is needed")

METHODS = [m for m in baselines.METHODS.values() if m.weight is not None]
UNIFORM = ("dorefa", "ewgs", "lsq", "lsq_midrise", "lsq_plus", "n2uq", "pact")


def run(model, images):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def kinds(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(
    ("arch", "method", "w_bits", "a_bits"),
    [
        ("alexnet", "direct", 2, 2),
        ("resnet20", "pact", 3, 3),
        ("resnet18", "dorefa", 1, 2),
        ("mobilenetv2", "lq_nets", 2, 2),
    ],
)
def test_onnxruntime_gives_the_same_scores(arch, method, w_bits, a_bits):
    net, graph = network(arch, method, w_bits, a_bits)
    images = np.random.default_rng(0).normal(0, 1, (16, CHANNELS, SIDE, SIDE)).astype(np.float32)
    model = onnx_model(graph)
    expected, scores = net.scores(images), run(model, images)
    # A value on a threshold may get another code where floats are added in another order.
    near = np.abs(scores - expected).max(1) <= 1e-4 * np.abs(expected).max()
    assert near.mean() >= 0.75
    uniform = method in ("pact", "dorefa")
    assert ("QuantizeLinear" in kinds(model)) == uniform
    assert ("GreaterOrEqual" in kinds(model)) != uniform


def test_every_operation_has_its_form():
    graph = every_operation()
    images = np.random.default_rng(0).normal(0, 1, (32, *graph.input_shape)).astype(np.float32)
    expected = Network(graph, about(4)).scores(images)
    scores = run(onnx_model(graph), images)
    near = np.abs(scores - expected).max(1) <= 1e-5 * np.abs(expected).max()
    assert near.mean() >= 0.9


def verified(folder, arch, method, w_bits, a_bits):
    """The ONNX form, each of whose operations is that of torch in onnxruntime."""
    model, _ = quantized(arch, method, w_bits, a_bits)
    graph = trace(model, (CHANNELS, SIDE, SIDE))
    form = onnx_model(graph)
    (folder / "model.onnx").write_bytes(form.SerializeToString())
    assert verify(folder / "model.onnx", graph, model).startswith("verified by onnxruntime ")
    return form


def weight_types(form):
    """The types of the integers that weights are stored as, by their numbers in ONNX."""
    return {c.data_type for c in form.graph.initializer if c.name.endswith("_weight_codes")}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_each_method_is_computed_as_by_torch(method, tmp_path):
    """Also where weights are float32, which onnxruntime would round behind DequantizeLinear."""
    bits = 2 if method.offers(2) else 1
    found = kinds(verified(tmp_path, "alexnet", method.name, bits, bits))
    assert ("QuantizeLinear" in found) == (method.name in UNIFORM)
    assert ("GreaterOrEqual" in found) != (method.name in UNIFORM)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", UNIFORM)
def test_uniform_levels_stay_so_at_every_width(method, bits, tmp_path):
    form = verified(tmp_path, "alexnet", method, bits, bits)
    assert "QuantizeLinear" in kinds(form)
    if (method, bits) != ("n2uq", 8):  # its levels are uniform only to a rounding of its own
        assert "GreaterOrEqual" not in kinds(form)
        whole = bits < 8 or method in ("lsq", "lsq_plus")  # odd numbers of 8 bits go up to 255
        assert weight_types(form) == {3 if whole else 6}  # INT8, INT32


@pytest.mark.parametrize("method", UNIFORM)
def test_signed_inputs_are_computed_as_by_torch(method, tmp_path):
    form = verified(tmp_path, "mobilenetv2", method, 2, 2)
    assert "QuantizeLinear" in kinds(form)
    # Of the signed grids LSQ's alone has zero among its levels.
    assert ("GreaterOrEqual" in kinds(form)) == (method != "lsq")


def test_levels_above_the_ceiling_of_a_relu6_are_left_out(tmp_path):
    form = verified(tmp_path, "mobilenetv2", "lsq", 8, 8)
    assert "GreaterOrEqual" not in kinds(form)
