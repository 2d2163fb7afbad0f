"""ResNet-20 (He et al. 2016, section 4.2) and ResNet-18 (section 4.1).

A block is torchvision's, except that its last ReLU is done by the block after it: a block returns
the sum before the ReLU, so that the next quantizer can do the ReLU in its own pass.
"""

from torch import Tensor, nn
from torch.nn import functional

from lowbit_core.conversion.relu import after_relu, with_relu
from lowbit_core.models.stem import initialise, stem_layers
from lowbit_core.runtime.errors import InputError

# With fewer planes, oneDNN's gradient of a 1x1 convolution of stride 2 writes beyond its memory on
# processors without AVX-512 (torch 2.13; channels_last): the process crashes or its numbers are
# wrong.
MIN_WIDTH = 8


class Block(nn.Module):
    """relu(x) -> conv, batch norm, ReLU, conv, batch norm, plus relu(x), projected if need be."""

    def __init__(self, planes_in: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(planes_in, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1 or planes_in != planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(planes_in, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        x, out = with_relu(self.conv1, x)
        out = after_relu(self.conv2, self.bn1(out))
        if self.downsample is not None:
            x = self.downsample(x)
        return self.bn2(out).add_(x)


class ResNet(nn.Module):
    """Stages of basic blocks; each stage after the first halves the side. Input (N, C, H, W)."""

    def __init__(
        self, blocks: tuple[int, ...], width: int, stem: str, classes: int, channels: int
    ) -> None:
        super().__init__()
        if not isinstance(width, int) or width < MIN_WIDTH:
            raise InputError(
                f"ResNet width {width!r}: it must be a whole number of at least {MIN_WIDTH}"
            )
        self.stem = stem_layers(stem, channels, width)
        stages = []
        planes_in = width
        for stage, count in enumerate(blocks):
            planes = width * 2**stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(Block(planes_in, planes, stride))
                planes_in = planes
        self.blocks = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(planes_in, classes)
        self.signed_inputs = frozenset({"stem.0"})
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.blocks(self.stem(x)), inplace=True)
        return self.fc(self.pool(x).flatten(1))


def resnet20(*, classes: int, channels: int, width: int = 16, stem: str = "small") -> ResNet:
    """Three stages of three blocks, `width`, 2x and 4x planes."""
    return ResNet((3, 3, 3), width, stem, classes, channels)


def resnet18(*, classes: int, channels: int, width: int = 64, stem: str = "imagenet") -> ResNet:
    """Four stages of two blocks, `width` to 8x planes."""
    return ResNet((2, 2, 2, 2), width, stem, classes, channels)
