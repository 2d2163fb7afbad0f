"""MobileNetV2 (Sandler et al. 2018), torchvision's definition with a stem for small inputs."""

from torch import nn

import lowbit_core.runtime.torchvision_ops  # noqa: F401  before torchvision

# isort: split
from torchvision.models.mobilenetv2 import InvertedResidual, MobileNetV2

from lowbit_core.models.stem import check_stem

# expansion, channels, repeats, stride (Table 2 of the paper)
_IMAGENET = [
    [1, 16, 1, 1],
    [6, 24, 2, 2],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]


def mobilenetv2(
    *,
    classes: int,
    channels: int,
    width: float = 1.0,
    stem: str = "imagenet",
    repeats: int | None = None,
    last_channels: int = 1280,
) -> MobileNetV2:
    """`width` multiplies all planes; `repeats` limits the blocks of a stage, for small suites.

    Both small stems have stride 1 in the second stage, as is usual for 32x32 inputs. The stride of
    the first convolution is 1 for `small` and 2 for `small_stride2`.
    """
    check_stem(stem)
    setting = [list(row) for row in _IMAGENET]
    if repeats is not None:
        setting = [[t, c, min(n, repeats), s] for t, c, n, s in setting]
    if stem != "imagenet":
        setting[1][3] = 1
    model = MobileNetV2(
        num_classes=classes, width_mult=width, inverted_residual_setting=setting, dropout=0.0
    )
    first = model.features[0][0]
    stride = 1 if stem == "small" else 2
    model.features[0][0] = nn.Conv2d(channels, first.out_channels, 3, stride, 1, bias=False)
    if last_channels != model.last_channel:
        last = model.features[-1]
        last[0] = nn.Conv2d(last[0].in_channels, last_channels, 1, bias=False)
        last[1] = nn.BatchNorm2d(last_channels)
        model.classifier[1] = nn.Linear(last_channels, classes)
        model.last_channel = last_channels
    for module in (model.features[0][0], model.features[-1][0]):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    nn.init.normal_(model.classifier[1].weight, 0.0, 0.01)
    nn.init.zeros_(model.classifier[1].bias)
    signed = {"features.0.0", f"features.{len(model.features) - 1}.0"}
    for index, block in enumerate(model.features):
        # A block's expansion reads the linear (signed) output of the block before it.
        if isinstance(block, InvertedResidual) and len(block.conv) == 4:
            signed.add(f"features.{index}.conv.0.0")
    model.signed_inputs = frozenset(signed)
    return model
