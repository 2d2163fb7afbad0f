"""A network that was read from an ONNX file, without torch.

Plain ONNX is computed by onnxruntime, QONNX by the executor of the package qonnx, one node after
the other. A file can be written without either.
"""

import json
from collections.abc import Callable
from functools import cache, cached_property
from importlib import import_module, metadata
from pathlib import Path

import numpy as np

from deploy.fileformat import About
from lowbit_core.runtime.errors import InputError

QONNX_DOMAIN = "qonnx.custom_op.general"
INSTALL = "`pip install -e '.[onnx]'`"
Compute = Callable[[np.ndarray], dict[str, np.ndarray]]


class NotInstalled(InputError):
    """A package that computes ONNX files is missing. The message says what installs it."""


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    try:
        import_module(package)
    except ImportError:
        return False
    return True


def need(package: str) -> None:
    """Raises NotInstalled where a package cannot be imported."""
    if not is_installed(package):
        raise NotInstalled(f"the package {package} is not installed: {INSTALL}")


class OnnxNetwork:
    """Computes scores of images by `package`, on `threads` threads where that is onnxruntime.

    Raises NotInstalled, or InputError where the package refuses the model or the images.
    """

    def __init__(self, model, threads: int = 1, name: str | Path = "the model") -> None:
        domains = {used.domain for used in model.opset_import}
        self.package = "qonnx" if QONNX_DOMAIN in domains else "onnxruntime"
        for package in dict.fromkeys((self.package, "onnxruntime")):  # qonnx calls it, too
            need(package)
        self.model, self.name = model, name
        start = _qonnx if self.package == "qonnx" else _onnxruntime
        self._compute = self._call(start, model, threads)

    def _call(self, function: Callable, *arguments: object):
        try:
            return function(*arguments)
        except Exception as error:  # each package has errors of its own
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"{self.name}: {self.package} cannot compute it: {reason}") from error

    @property
    def engine(self) -> str:
        """The package and its version."""
        return f"{self.package} {metadata.version(self.package)}"

    @cached_property
    def about(self) -> About:
        """What `export` writes to the metadata. Raises InputError where they are not there."""
        held = {entry.key: entry.value for entry in self.model.metadata_props}
        try:
            value = {key: json.loads(held[key]) for key in ("origin", "classes", "mean", "std")}
            tuples = {key: tuple(value[key]) for key in ("classes", "mean", "std")}
            if not isinstance(value["origin"], dict):
                raise ValueError("the origin is not an object")
            return About(value["origin"], crop=json.loads(held["crop"]), **tuples)
        except (KeyError, ValueError, TypeError):
            raise InputError(
                f"{self.name}: its metadata are not those that `python -m deploy export` writes: "
                "export it again"
            ) from None

    def values(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs for normalised images (N, C, H, W) by name; of QONNX every tensor."""
        return self._call(self._compute, np.ascontiguousarray(images, np.float32))

    def scores(self, images: np.ndarray) -> np.ndarray:
        """Scores (N, classes) float32 of normalised images (N, C, H, W)."""
        return self.values(images)[self.model.graph.output[0].name]


def load(path: str | Path, *, threads: int = 1) -> OnnxNetwork:
    """The network of an ONNX file. Raises InputError where it is none or cannot be computed."""
    need("onnx")
    import onnx

    data = Path(path).read_bytes()
    try:
        model = onnx.load_model_from_string(data)
    except Exception:  # protobuf's, of which there are several implementations
        model = None
    if model is None or not model.graph.node:  # no bytes at all are a legal, empty message
        raise InputError(f"{path}: not an ONNX file")
    return OnnxNetwork(model, threads, path)


def _onnxruntime(model, threads: int) -> Compute:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (source,), names = session.get_inputs(), [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(None, {source.name: images}), strict=True))


def _qonnx(model, _: int) -> Compute:
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    @cache
    def ready(count: int) -> ModelWrapper:
        """The model for so many images: the executor wants every shape to be known."""
        own = type(model)()
        own.CopyFrom(model)
        for tensor in (*own.graph.input, *own.graph.output):
            tensor.type.tensor_type.shape.dim[0].dim_value = count
        return ModelWrapper(own).transform(InferShapes())

    source = model.graph.input[0].name
    return lambda images: execute_onnx(ready(len(images)), {source: images}, True)
