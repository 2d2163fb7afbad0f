"""No quantization: every method is compared with it, trained by the same recipe."""

from lowbit_core.quantizers.interface import Method

METHODS = (Method("fp", weight=None, activation=None),)
