"""A network in full precision as onnxruntime computes it in 8 bits, to compare a file with.

It is onnxruntime's static quantization of every layer, the first and the last among them: weights
in int8 with a scale for each channel, activations in uint8. Only measurements need it.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

NEEDS = ("onnx", "onnxruntime.quantization")  # modules
CALIBRATION_IMAGES = 8


def write_int8(source: Path, target: Path, images: np.ndarray) -> None:
    """Quantize the ONNX file `source` to `target`; ranges are those of images (N, C, H, W)."""
    import onnx
    from onnxruntime import quantization

    (entry,) = onnx.load(source).graph.input

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(images[:, None])

        def get_next(self) -> dict | None:
            image = next(self.left, None)
            return None if image is None else {entry.name: image}

    with _quiet():
        quantization.quantize_static(
            source,
            target,
            Images(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )


def onnxruntime_call(path: Path, images: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    """The function by which onnxruntime computes the first output of images (N, C, H, W)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return lambda: session.run(None, {entry.name: images})[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice to fold batch norm first, which is done already."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
