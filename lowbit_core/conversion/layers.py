"""Convolution and linear layers whose weight and input pass through quantizers."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowbit_core.quantizers.interface import ActivationQuantizer, WeightQuantizer


class QuantLayer(nn.Module):
    """y = f(a(x), w()): an activation quantizer `a`, a weight quantizer `w`, an unquantized bias.

    Without a weight quantizer the float weight is a parameter; without an activation quantizer the
    input is used as it is.
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
        self.convolution: tuple | None = None
        self.reads: tuple | None = None
        if isinstance(layer, nn.Conv2d):
            stride = layer.stride
            if layer.kernel_size == (1, 1) and layer.padding == (0, 0) and stride != (1, 1):
                # A strided 1x1 convolution reads only every s-th pixel, so only those are
                # quantized and fitted: the stride is taken here, by an index.
                self.reads, stride = (..., *(slice(None, None, s) for s in stride)), (1, 1)
            self.convolution = (stride, layer.padding, layer.dilation, layer.groups)

    def used_weight(self) -> Tensor:
        """The weight that this forward pass computes with, in the layer's shape."""
        return self.weight if self.weight_quantizer is None else self.weight_quantizer()

    @property
    def does_relu(self) -> bool:
        """Whether the activation quantizer does the ReLU before this layer."""
        quantizer = self.activation_quantizer
        return quantizer is not None and quantizer.DOES_RELU and not quantizer.signed

    def forward(self, x: Tensor, also_relu: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The output; (relu(x), output) if `also_relu`, which needs `does_relu`."""
        quantizer = self.activation_quantizer
        if self.reads is not None and not also_relu:
            x = x[self.reads]
        if quantizer is None:
            return self._compute(x)
        if quantizer.calibrating:
            quantizer.calibrate(x)
        if also_relu:
            relu, y = quantizer(x, also_relu=True)
            return relu, self._compute(y if self.reads is None else y[self.reads])
        return self._compute(quantizer(x))

    def _compute(self, x: Tensor) -> Tensor:
        if self.convolution is None:
            return functional.linear(x, self.used_weight(), self.bias)
        return functional.conv2d(x, self.used_weight(), self.bias, *self.convolution)


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor) -> None:
    """Set every activation quantizer's initial range from one batch (N, C, H, W).

    In forward order, so that each sees quantized inputs. In training mode, because the running
    statistics of batch norm do not fit the quantized weights yet.
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
