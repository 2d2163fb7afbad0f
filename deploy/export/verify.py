"""Compares an ONNX file with the network that it was written from, in the engine that runs it.

Its scores alone cannot show that a file is right. Floats are added in another order than torch's;
now and then a value on a threshold gets another code for that, and one changed code changes many
after it: right files of deep networks were 0.1 of the largest score away, some wrong ones less. So
each operation is also computed by torch from the inputs that the engine itself gave to it.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from deploy import graph as graphs
from deploy import onnxfile
from deploy.graph import Add, Convolution, Graph, Operation, Pool, Quantize, Relu
from deploy.onnxfile import OnnxNetwork
from lowbit_core.runtime.errors import InputError

BATCHES, BATCH = 2, 4  # images of random numbers
OPERATION_BOUND = 1e-4  # of an operation's outputs, as a share of the largest one
SCORES_BOUND = 0.5  # of the scores, as a share of the largest one
TIE = 1e-4  # of a step: so near to a threshold, either level is right


def verify(path: Path, network: Graph, model: nn.Module) -> str:
    """One sentence on the ONNX file at `path`: how far it is from `model`, traced as `network`.

    Or the sentence that it is not verified, where the package that computes it is not installed.
    Raises InputError where an operation or the scores are further away than the bounds allow.
    """
    try:
        own = onnxfile.load(path)
    except onnxfile.NotInstalled as error:
        return f"not verified: {error}"
    every = OnnxNetwork(_with_all_outputs(own.model, network), name=path)
    random = np.random.default_rng(0)
    worst, scores, expected = 0.0, [], []
    for _ in range(BATCHES):
        images = random.normal(0, 1, (BATCH, *network.input_shape)).astype(np.float32)
        values = {network.input: images, **every.values(images)}
        worst = max(worst, _operations_apart(network, values, own.engine))
        scores.append(own.scores(images))
        expected.append(_torch_scores(model, images))
    given, wanted = np.concatenate(scores), np.concatenate(expected)
    apart = float(np.abs(given - wanted).max() / np.abs(wanted).max())
    if not apart <= SCORES_BOUND:
        raise InputError(
            f"the scores by {own.engine} are up to {apart:.2g} of the largest one away from those "
            f"of torch: at most {SCORES_BOUND} is allowed"
        )
    same = int((given.argmax(1) == wanted.argmax(1)).sum())
    return (
        f"verified by {own.engine} with {len(given)} random images: scores up to {apart:.1g} of "
        f"the largest one away from torch, the same class for {same} of {len(given)}, each "
        f"operation to {worst:.1g} of its largest output"
    )


@torch.no_grad()
def _torch_scores(model: nn.Module, images: np.ndarray) -> np.ndarray:
    x = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
    return model(x).flatten(1).numpy()


def _with_all_outputs(model, network: Graph):
    """A copy of the model that also gives the output of every operation of the graph."""
    from onnx import TensorProto, helper

    own = type(model)()
    own.CopyFrom(model)
    shapes = graphs.shapes(network)
    for op in network.operations:
        shape = ["N", *shapes[op.output]]
        own.graph.output.append(helper.make_tensor_value_info(op.output, TensorProto.FLOAT, shape))
    return own


def _operations_apart(network: Graph, values: dict[str, np.ndarray], engine: str) -> float:
    """The largest distance of an operation from torch, each from its inputs in `values`.

    Raises InputError, with the name of the layer, where one is beyond the bound.
    """
    worst = 0.0
    for op in network.operations:
        *inputs, output = (
            torch.from_numpy(np.array(values[name], np.float32))
            for name in (*graphs.read_by(op), op.output)
        )
        apart = operation_apart(op, inputs, output)
        if not apart <= OPERATION_BOUND:
            what = type(op).__name__.lower()
            raise InputError(
                f"{engine} gives a {what} ({getattr(op, 'layer', op.output)}) up to {apart:.2g} of "
                f"its largest output away from torch: at most {OPERATION_BOUND} is allowed"
            )
        worst = max(worst, apart)
    return worst


def operation_apart(op: Operation, inputs: list[Tensor], output: Tensor) -> float:
    """How far `output` (N, C, H, W) is from that of an operation, as a share of its largest."""
    if isinstance(op, Quantize):
        (x,), levels = inputs, torch.from_numpy(op.levels)
        near = TIE * (levels[-1] - levels[0]) / (len(levels) - 1)
        # The levels rise, so that all that is right lies between those of both ends.
        off = torch.maximum(_quantized(op, x - near) - output, output - _quantized(op, x + near))
        top = levels.abs().max()
    else:
        expected = _computed(op, inputs)
        off, top = (output - expected).abs(), expected.abs().max()
    return float(off.max().clamp_min(0) / top.clamp_min(torch.finfo().tiny))


def _quantized(op: Quantize, x: Tensor) -> Tensor:
    codes = torch.bucketize(x, torch.from_numpy(op.thresholds), right=True)
    return torch.from_numpy(op.levels)[codes]


def _computed(op: Operation, inputs: list[Tensor]) -> Tensor:
    if isinstance(op, Add):
        return inputs[0] + inputs[1]
    (x,) = inputs
    if isinstance(op, Convolution):
        weight = torch.from_numpy(op.weight.dequantized()).permute(0, 3, 1, 2)
        groups = len(weight) if op.depthwise else 1
        y = functional.conv2d(x, weight, None, op.stride, op.padding, groups=groups)
        scale = 1 if op.scale is None else torch.from_numpy(op.scale)[:, None, None]
        return y * scale + torch.from_numpy(op.shift)[:, None, None]
    if isinstance(op, Relu):
        return x.clamp(0, op.ceiling)
    assert isinstance(op, Pool)
    if op.size is None:
        return functional.max_pool2d(x, op.kernel, op.stride, op.padding)
    pool = functional.adaptive_avg_pool2d if op.mean else functional.adaptive_max_pool2d
    return pool(x, op.size)
