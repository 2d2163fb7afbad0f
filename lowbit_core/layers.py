"""Convolution and linear layers whose weight and input pass through quantizers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from lowbit_core.quantizer import ActivationQuantizer, WeightQuantizer


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
        self.convolution = None
        if isinstance(layer, nn.Conv2d):
            self.convolution = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def used_weight(self) -> Tensor:
        """The weight of this forward pass, in the layer's shape."""
        return self.weight if self.weight_quantizer is None else self.weight_quantizer()

    def forward(self, x: Tensor) -> Tensor:
        quantizer = self.activation_quantizer
        if quantizer is None:
            return self._compute(x)
        if quantizer.calibrating:
            quantizer.calibrate(x)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._compute(quantizer(x))
        rounding = quantizer.rounding()  # before the step that may move it
        y = quantizer(x)
        with _kept_as_input(x.detach(), y, rounding):
            return self._compute(y)

    def _compute(self, x: Tensor) -> Tensor:
        if self.convolution is None:
            return functional.linear(x, self.used_weight(), self.bias)
        return functional.conv2d(x, self.used_weight(), self.bias, *self.convolution)


def _kept_as_input(
    x: Tensor, y: Tensor, rounding: Callable[[Tensor], Tensor]
) -> saved_tensors_hooks:
    """Where autograd would keep y = Q(x), it computes Q(x) again in the backward pass.

    The layer before keeps x anyway (a ReLU its output), so quantization takes no memory of its own.
    """
    place, shape = y.data_ptr(), y.shape

    def pack(tensor: Tensor) -> Tensor | None:
        return None if tensor.data_ptr() == place and tensor.shape == shape else tensor

    def unpack(kept: Tensor | None) -> Tensor:
        return rounding(x) if kept is None else kept

    return saved_tensors_hooks(pack, unpack)


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
