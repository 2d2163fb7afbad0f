"""No quantization: every method is compared with it, trained by the same recipe."""

from lowbit_core.quantizers.interface import Method

METHODS = (Method("fp", "Full precision", "#000000", "D", weight=None, activation=None),)
