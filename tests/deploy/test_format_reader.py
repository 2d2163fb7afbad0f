"""docs/deploy.md describes a file well enough for a second reader, without code of deploy."""

import ast
from pathlib import Path

import format_reader
import numpy as np
import pytest
from small_networks import about, every_operation, network

from deploy import fileformat
from deploy.network import Network

IMAGES = 8


def compare(graph, net: Network, path: Path) -> None:
    classes, (channels, *_) = net.classes, graph.input_shape
    fileformat.save(path, graph, about(classes, channels))
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (IMAGES, *graph.input_shape)).astype(np.float32)
    expected = net.scores(images)
    data = path.read_bytes()
    scores = np.stack([format_reader.scores(data, image) for image in images])
    near = np.abs(scores - expected).max(1) <= 1e-5 * np.abs(expected).max()
    # Float64 and float32 may put a value on the two sides of a threshold, and one code changes many
    # after it. A mistake of the reader would be in all images.
    assert near.mean() >= 0.75


@pytest.mark.parametrize(
    ("arch", "method", "w_bits", "a_bits"),
    [
        ("resnet20", "pact", 2, 2),  # one row of levels
        ("resnet20", "direct", 2, 2),  # a basis for each channel
        ("resnet20", "ttq", 2, 2),  # three levels in two planes
        ("resnet18", "adabin", 1, 1),  # two levels for each channel
        ("mobilenetv2", "lsq", 4, 4),  # depthwise layers and signed inputs
        ("mobilenetv2", "lq_nets", 2, 2),
        ("alexnet", "dorefa", 1, 2),  # pools and linear layers
    ],
)
def test_another_reader_computes_the_same_scores(arch, method, w_bits, a_bits, tmp_path):
    net, graph = network(arch, method, w_bits, a_bits)
    compare(graph, net, tmp_path / "model.lowbit")


def test_another_reader_computes_every_operation(tmp_path):
    graph = every_operation()
    compare(graph, Network(graph, about(4)), tmp_path / "model.lowbit")


def test_the_other_reader_imports_nothing_of_the_project():
    names = set()
    for node in ast.walk(ast.parse(Path(format_reader.__file__).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    standard = {"collections.abc", "hashlib", "json", "math", "struct", "zlib"}
    assert names <= {"numpy", "numpy.lib.stride_tricks"} | standard
