"""Mean and standard deviation of each data set's training pixels, by channel, pixels in [0, 1]."""

CENTER_RATIO = 224 / 256  # the side of the crop in the middle of a test image, of its shorter side

MEAN_STD: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "digits": ((0.3053,), (0.3760,)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
