"""The networks, each defined once; width and stem are arguments.

`build(arch, classes, channels, **options)` returns a full-precision network. Every network has the
attribute `signed_inputs`, the names of the layers whose input can be negative; all others follow a
ReLU. Its projection shortcuts are called `downsample`.
"""

from collections.abc import Callable

from torch import nn

from lowbit_core.models.alexnet import alexnet
from lowbit_core.models.mobilenetv2 import mobilenetv2
from lowbit_core.models.resnet import resnet18, resnet20
from lowbit_core.runtime.errors import InputError

ARCHS: dict[str, Callable[..., nn.Module]] = {
    "alexnet": alexnet,
    "mobilenetv2": mobilenetv2,
    "resnet18": resnet18,
    "resnet20": resnet20,
}


def build(arch: str, classes: int, channels: int, /, **options: object) -> nn.Module:
    """The network `arch` with `classes` outputs for images of `channels` planes.

    Raises InputError for an unknown network, an unknown option or a size that cannot be built.
    """
    if arch not in ARCHS:
        raise InputError(f"unknown arch {arch!r}: it must be one of {', '.join(sorted(ARCHS))}")
    try:
        return ARCHS[arch](classes=classes, channels=channels, **options)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # torch's, for impossible sizes
        reason = str(error).splitlines()[0]
        raise InputError(f"arch {arch!r} does not take the options {options}: {reason}") from error
