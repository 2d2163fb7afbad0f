"""The plain ONNX form, computed by onnxruntime."""

import numpy as np
import pytest
from small_networks import CHANNELS, SIDE, about, every_operation, network

from deploy.export.onnx import onnx_model
from deploy.network import Network

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


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
