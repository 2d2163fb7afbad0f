"""No quantization: the reference that every method is compared with, under the same recipe."""

from lowbit_core.quantizers.interface import Method

METHODS = (Method("fp", "Full precision", "#000000", "D", weight=None, activation=None),)
