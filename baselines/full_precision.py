"""No quantization: the reference that every method is compared with, under the same recipe."""

from lowbit_core.quantizers.interface import Method

METHODS = (Method("fp", weight=None, activation=None),)
