"""The methods of the benchmark: a new module here adds those that its METHODS lists, everywhere.

`quantize` applies one of them to any network (docs/library.md).
"""

import importlib
import pkgutil
from types import ModuleType

from torch import Tensor, nn

from lowbit_core.conversion.layers import calibrate
from lowbit_core.conversion.policy import Layers, QuantPolicy, is_shortcut
from lowbit_core.conversion.swap import convert
from lowbit_core.parallel import processes
from lowbit_core.quantizers.bits import parse_bits
from lowbit_core.quantizers.interface import Method
from lowbit_core.runtime.errors import InputError

METHODS: dict[str, Method] = {}
SOURCES: dict[str, str] = {}
"""The module in which each method is defined, by method name."""


def _methods_of(module: ModuleType) -> tuple[Method, ...]:
    """METHODS of a module of this folder; InputError if they are none."""
    methods = getattr(module, "METHODS", None)
    where = f"{module.__file__}: METHODS"
    if not isinstance(methods, tuple) or not all(isinstance(m, Method) for m in methods):
        raise InputError(f"{where} is {methods!r}: it must be a tuple of Method")
    for method in methods:
        if not method.name.isidentifier():  # names of folders and keys of settings contain it
            raise InputError(
                f"{where} names {method.name!r}: a name has letters, digits and underscores"
            )
        if method.name in METHODS:
            raise InputError(f"{where} names {method.name!r}, as {SOURCES[method.name]} does")
    return methods


for _info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
    _module = importlib.import_module(f"{__name__}.{_info.name}")
    for _method in _methods_of(_module):
        METHODS[_method.name] = _method
        SOURCES[_method.name] = _module.__name__


def method(name: str) -> Method:
    """The method called `name`; InputError names the legal set."""
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}: it must be one of {', '.join(METHODS)}")
    return METHODS[name]


def quantize(
    model: nn.Module,
    method: str | Method,
    bits: str,
    images: Tensor,
    *,
    first_last: str = "fp",
    shortcut: str = "quantized",
    exceptions: dict[str, str] | None = None,
    first_layers: Layers | None = None,
    last_layers: Layers | None = None,
    shortcut_layers: Layers = is_shortcut,
    signed: Layers | None = None,
) -> list[dict]:
    """Quantize the Conv2d and Linear layers of `model` in place; returns one row a layer.

    bits: such as W2A2. images (N, ...): an example batch, a few dozen images of the training data
    on the model's device. It shows how the layers are used and which inputs can be negative
    (unless `signed` names these), and it calibrates the activation quantizers. exceptions: name or
    pattern of layers -> their bits, such as {"layer4.*": "W4A4"}. The other policies are those of
    `QuantPolicy`. Raises InputError, before the model is changed, for what cannot be quantized.
    """
    own = {
        pattern: dict(zip(("w_bits", "a_bits"), parse_bits(label, "exceptions"), strict=True))
        for pattern, label in (exceptions or {}).items()
    }
    policy = QuantPolicy(
        _as_method(method), *parse_bits(bits, "bits"), first_last, shortcut, own,
        first_layers, last_layers, shortcut_layers,
    )  # fmt: skip
    if not isinstance(images, Tensor):
        raise InputError(f"images must be a tensor, not {type(images).__name__}")
    if len(images) < 2:
        raise InputError("images must be a tensor of at least 2 images: batch norm needs several")
    try:
        report = convert(model, policy, images, signed)
    except RuntimeError as error:
        if images.is_floating_point():
            raise
        raise InputError(
            f"images are {images.dtype}, which the model does not take: scale them to floats"
        ) from error
    with processes.alone():  # each process has these images
        calibrate(model, images)
    return report


def _as_method(given: str | Method) -> Method:
    return method(given) if isinstance(given, str) else given
