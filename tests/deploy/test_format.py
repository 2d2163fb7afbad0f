"""The file: what is written is read back, and whatever is wrong with it is refused."""

import re
import zlib

import numpy as np
import pytest
from mutants import parts
from small_networks import about, every_operation

from deploy import container, fileformat
from deploy.network import Network, load
from lowbit_core.runtime.errors import InputError


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A small file, and its graph."""
    graph = every_operation()
    path = tmp_path_factory.mktemp("files") / "model.lowbit"
    fileformat.save(path, graph, about(4))
    return path, graph


def test_a_file_gives_back_its_network(example):
    path, graph = example
    net = load(path)
    images = np.random.default_rng(0).normal(0, 1, (2, *graph.input_shape)).astype(np.float32)
    np.testing.assert_array_equal(net.scores(images), Network(graph, about(4)).scores(images))
    assert net.about == about(4)


def test_equal_networks_give_equal_bytes(example, tmp_path):
    path, graph = example
    fileformat.save(tmp_path / "again.lowbit", graph, about(4))
    assert (tmp_path / "again.lowbit").read_bytes() == path.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["again.lowbit"]


def _changed(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: b"", "not a .lowbit file"),
        (lambda data: b"\x89PNG\r\n\x1a\n" + data[8:], "not a .lowbit file"),
        (lambda data: data[:20], "cut short"),
        (lambda data: data[:-1], "was written with"),
        (lambda data: data + b"\0", "was written with"),
        (lambda data: data[:8] + b"\1\0\0\0" + data[12:], "format version 1"),
        (lambda data: data[:8] + b"\3\0\0\0" + data[12:], "format version 3"),
        (lambda data: _changed(data, len(data) - 9), "checksum differs"),
        (lambda data: _changed(data, 12), "checksum differs"),
        (lambda data: _changed(data, 70), "checksum differs"),
    ],
)
def test_a_spoilt_file_is_refused_in_one_sentence(example, tmp_path, spoil, reason):
    path = tmp_path / "spoilt.lowbit"
    path.write_bytes(spoil(example[0].read_bytes()))
    with pytest.raises(InputError, match=re.escape(reason)) as error:
        load(path)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(path))


def test_a_header_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    body = zlib.compress(bytes(container.MOST_HEADER_BYTES + 1), 9)
    monkeypatch.setattr(zlib, "compress", lambda *_: body)
    container.write(tmp_path / "bomb.lowbit", {}, [])
    with pytest.raises(InputError, match="too long"):
        load(tmp_path / "bomb.lowbit")


def _operation(header, kind):
    return next(op for op in header["operations"] if op["operation"] == kind)


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("convolution", {"padding": [5, 5]}, "not less than the kernel"),
        ("convolution", {"stride": [0, 1]}, "whole numbers from 1"),
        ("convolution", {"input": 1}, "input 1 is not a whole number from 0 to 0"),
        ("convolution", {"input": -1}, "input -1 is not a whole number from 0 to 0"),
        ("convolution", {"input": True}, "input True is not a whole number"),
        ("convolution", {"layer": "a\nb"}, "'layer' is no name of at most 500 characters"),
        ("convolution", {"layer": "\ud800"}, "'layer' is no name of at most 500 characters"),
        ("add", {"other": 0}, "tensor 0 is not of shape (8, 4, 4)"),
        ("add", {"other": 3}, "only a convolution reads codes"),
        ("convolution", {"weight": [8, 3, 3, 5]}, "does not fit"),
        ("convolution", {"compute": "counts"}, "cannot be computed by counts"),
        ("quantize", {"operation": "relu", "ceiling": None}, "array"),
        ("pool", {"size": [10**6, 1]}, "whole numbers from 1"),
        ("pool", {"operation": "eval"}, "is none of"),
    ],
)
def test_a_wrong_header_is_refused(example, tmp_path, kind, change, reason):
    header, arrays = parts(example[0])
    _operation(header, kind).update(change)
    container.write(tmp_path / "wrong.lowbit", header, arrays)
    with pytest.raises(InputError, match=re.escape(reason)):
        load(tmp_path / "wrong.lowbit")


def test_an_array_without_values_is_refused(example, tmp_path):
    header, arrays = parts(example[0])
    container.write(tmp_path / "empty.lowbit", header, [*arrays, np.zeros((0, 2), np.float32)])
    with pytest.raises(InputError, match=r"the shape \[0, 2\] is not at most four whole numbers"):
        load(tmp_path / "empty.lowbit")


@pytest.mark.parametrize("odd", ["caf\x1b", "two\nlines", "\ud800"])
@pytest.mark.parametrize(
    "put",
    [
        lambda header, odd: header["classes"].__setitem__(0, odd),
        lambda header, odd: header["origin"].update(method=odd),
        lambda header, odd: header["origin"].update(policy={"exceptions": [odd]}),
        lambda header, odd: header["origin"].update({odd: 1}),
    ],
)
def test_a_text_that_cannot_be_printed_is_named(example, tmp_path, put, odd):
    header, arrays = parts(example[0])
    put(header, odd)
    container.write(tmp_path / "odd.lowbit", header, arrays)
    with pytest.raises(InputError, match=re.escape(f"the text [{odd!r}] holds a character")):
        load(tmp_path / "odd.lowbit")


@pytest.mark.parametrize("threads", [0, 1025, 2**32, 2.5, "2"])
def test_a_number_of_threads_that_no_engine_starts_is_refused(example, threads):
    with pytest.raises(
        InputError, match=f"threads {threads}: must be a whole number from 1 to 1024"
    ):
        Network(example[1], about(4), threads=threads)
