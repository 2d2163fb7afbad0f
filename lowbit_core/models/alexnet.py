"""AlexNet (Krizhevsky et al. 2012) with batch norm, as in the LQ-Nets and PACT papers."""

from torch import Tensor, nn

from lowbit_core.models.stem import check_stem, initialise


def _conv(planes_in: int, planes: int, side: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(planes_in, planes, side, stride, side // 2, bias=False),
        nn.BatchNorm2d(planes),
        nn.ReLU(inplace=True),
    ]


def _fc(planes_in: int, planes: int) -> list[nn.Module]:
    return [nn.Linear(planes_in, planes, bias=False), nn.BatchNorm1d(planes), nn.ReLU(inplace=True)]


class AlexNetBN(nn.Module):
    """Five convolutions and three linear layers, without dropout: batch norm regularises.

    Input (N, C, H, W). `imagenet` starts with 11x11 stride 4; the small stems start with 3x3.
    """

    def __init__(self, width: int, stem: str, classes: int, channels: int) -> None:
        super().__init__()
        check_stem(stem)
        p1, p2, p3, p4, hidden = width, 3 * width, 6 * width, 4 * width, 64 * width
        if stem == "imagenet":
            first = _conv(channels, p1, 11, 4)
            pool, cells = (3, 2), 6
        else:
            first = _conv(channels, p1, 3, 2 if stem == "small_stride2" else 1)
            pool, cells, hidden = (2, 2), 2 if stem == "small_stride2" else 4, 16 * width
        self.features = nn.Sequential(
            *first,
            nn.MaxPool2d(*pool),
            *_conv(p1, p2, 5),
            nn.MaxPool2d(*pool),
            *_conv(p2, p3, 3),
            *_conv(p3, p4, 3),
            *_conv(p4, p4, 3),
            nn.AdaptiveMaxPool2d(cells),
        )
        self.classifier = nn.Sequential(
            *_fc(p4 * cells * cells, hidden), *_fc(hidden, hidden), nn.Linear(hidden, classes)
        )
        self.signed_inputs = frozenset({"features.0"})
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def alexnet(*, classes: int, channels: int, width: int = 64, stem: str = "imagenet") -> AlexNetBN:
    """`width` planes in the first convolution (64 as in torchvision's AlexNet)."""
    return AlexNetBN(width, stem, classes, channels)
