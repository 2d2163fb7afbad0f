"""Convolution and linear layers whose weight and input pass through quantizers."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowbit_core.quantizers.interface import ActivationQuantizer, WeightQuantizer


class QuantLayer(nn.Module):
    """y = f(a(x), w()): an activation quantizer `a`, a weight quantizer `w`, an unquantized bias.

    Either quantizer may be absent: then the float weight is a parameter, or the input passes as is.
    """

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        weight_quantizer: WeightQuantizer | None,
        activation_quantizer: ActivationQuantizer | None,
    ) -> None:
        super().__init__()
        self.weight_quantizer = weight_quantizer
        self.activation_quantizer = activation_quantizer
        if weight_quantizer is None:
            self.weight = layer.weight
        self.bias = layer.bias
        self.convolution = self.reads = None
        if isinstance(layer, nn.Conv2d):
            stride = layer.stride
            if layer.kernel_size == (1, 1) and layer.padding == (0, 0) and stride != (1, 1):
                # It reads every so many pixels alone: the others are not quantized, nor fitted.
                self.reads, stride = (..., *(slice(None, None, s) for s in stride)), (1, 1)
            self.convolution = (stride, layer.padding, layer.dilation, layer.groups)

    def used_weight(self) -> Tensor:
        """The weight of this forward pass, in the layer's shape."""
        return self.weight if self.weight_quantizer is None else self.weight_quantizer()

    @property
    def does_relu(self) -> bool:
        """Whether this layer takes its input from before the ReLU."""
        quantizer = self.activation_quantizer
        return quantizer is not None and quantizer.DOES_RELU and not quantizer.signed

    def forward(self, x: Tensor, fork: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The layer's output; (relu(x), output) if `fork`, where `does_relu`."""
        quantizer = self.activation_quantizer
        if self.reads is not None and not fork:
            x = x[self.reads]
        if quantizer is None:
            return self._compute(x)
        if quantizer.calibrating:
            quantizer.calibrate(x)
        if fork:
            relu, y = quantizer(x, fork=True)
            return relu, self._compute(y if self.reads is None else y[self.reads])
        return self._compute(quantizer(x))

    def _compute(self, x: Tensor) -> Tensor:
        if self.convolution is None:
            return functional.linear(x, self.used_weight(), self.bias)
        return functional.conv2d(x, self.used_weight(), self.bias, *self.convolution)


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor) -> None:
    """Set every activation quantizer's initial range from one batch (N, C, H, W), front to back.

    In training mode: the running statistics of batch norm do not fit the quantized weights yet.
    """
    quantizers = [m for m in model.modules() if isinstance(m, ActivationQuantizer)]
    was_training = model.training
    model.train()
    for quantizer in quantizers:
        quantizer.calibrating = True
    model(images)
    for quantizer in quantizers:
        quantizer.calibrating = False
    model.train(was_training)
