"""The first layers, which depend on the input size, and the initialisation of all networks."""

from torch import nn

from lowbit_core.runtime.errors import InputError

STEMS = ("imagenet", "small", "small_stride2")


def check_stem(stem: str) -> None:
    """Raise InputError unless `stem` is one of STEMS."""
    if stem not in STEMS:
        raise InputError(f"unknown stem {stem!r}: it must be one of {', '.join(STEMS)}")


def stem_layers(stem: str, channels: int, width: int) -> nn.Sequential:
    """`imagenet`: 7x7 stride 2 and a max pool; `small`: 3x3; `small_stride2`: 3x3 stride 2.

    The ReLU is left to the first block: a max pool gives the same before it as after it.
    """
    check_stem(stem)
    if stem == "imagenet":
        conv = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
        pool = [nn.MaxPool2d(3, 2, 1)]
    else:
        conv = nn.Conv2d(channels, width, 3, 2 if stem == "small_stride2" else 1, 1, bias=False)
        pool = []
    return nn.Sequential(conv, nn.BatchNorm2d(width), *pool)


def initialise(model: nn.Module) -> None:
    """He initialisation (fan out) of convolutions, N(0, 0.01) of linear layers, zero biases."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
