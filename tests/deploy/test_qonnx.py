"""The QONNX form, computed by the executor of the package qonnx."""

import numpy as np
import pytest
from small_networks import CHANNELS, SIDE, network

from deploy.export.qonnx import DOMAIN, qonnx_model
from lowbit_core.runtime.errors import InputError

pytest.importorskip("onnx")

IMAGES = 8


def executed(model, images: np.ndarray) -> np.ndarray:
    wrapper = pytest.importorskip("qonnx.core.modelwrapper", reason="the package qonnx is needed")
    execute = pytest.importorskip("qonnx.core.onnx_exec")
    shapes = pytest.importorskip("qonnx.transformation.infer_shapes")
    (image,) = model.graph.input
    image.type.tensor_type.shape.dim[0].dim_value = len(images)
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = len(images)
    ready = wrapper.ModelWrapper(model).transform(shapes.InferShapes())
    (scores,) = execute.execute_onnx(ready, {image.name: images}).values()
    return scores


UNIFORM = [("resnet20", "pact", 3, 3), ("resnet18", "dorefa", 1, 2), ("resnet20", "lsq", 2, 2)]


@pytest.mark.parametrize(("arch", "method", "w_bits", "a_bits"), UNIFORM)
def test_the_executor_gives_the_same_scores(arch, method, w_bits, a_bits):
    net, graph = network(arch, method, w_bits, a_bits)
    shape = (IMAGES, CHANNELS, SIDE, SIDE)
    images = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    expected, scores = net.scores(images), executed(qonnx_model(graph), images)
    # A value on a threshold may get another code where floats are added in another order.
    near = np.abs(scores - expected).max(1) <= 1e-4 * np.abs(expected).max()
    assert near.mean() >= 0.75


@pytest.mark.parametrize(("arch", "method", "w_bits", "a_bits"), UNIFORM)
def test_every_quantizer_is_one_node(arch, method, w_bits, a_bits):
    graph = network(arch, method, w_bits, a_bits)[1]
    nodes = [node for node in qonnx_model(graph).graph.node if node.domain == DOMAIN]
    weights = [node for node in nodes if node.output[0].endswith("_weight")]
    layers = [op for op in graph.operations if getattr(op, "weight", None) is not None]
    assert len(weights) == sum(op.weight.codes is not None for op in layers)
    kinds = {node.op_type for node in weights}
    assert kinds == ({"BipolarQuant"} if w_bits == 1 else {"Quant"})


def test_levels_on_a_basis_are_refused():
    graph = network("resnet20", "lq_nets", 2, 2)[1]
    with pytest.raises(InputError, match=r"layer \S+: .* as QONNX needs; --format must be"):
        qonnx_model(graph)
