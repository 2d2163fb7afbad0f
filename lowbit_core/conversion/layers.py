"""Convolution and linear layers whose weight and input pass through quantizers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowbit_core.quantizers.interface import ActivationQuantizer, WeightQuantizer


class EverySthPixel(torch.autograd.Function):
    """x[..., ::s, ::s] of images x (..., C, H, W), densely stored; the rest has no gradient.

    The gradient is stored like x. That of an index would always have its channels first, and the
    sum with another gradient of x would turn it around: a fortieth of a step of ResNet-20.
    """

    @staticmethod
    def forward(ctx, x: Tensor, strides: tuple[int, ...]) -> Tensor:
        ctx.shape, ctx.reads = x.shape, (..., *(slice(None, None, s) for s in strides))
        is_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        ctx.format = torch.channels_last if is_last else torch.contiguous_format
        return x[ctx.reads].contiguous(memory_format=ctx.format)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        like = {"dtype": grad.dtype, "device": grad.device, "memory_format": ctx.format}
        whole = torch.empty(ctx.shape, **like).zero_()
        whole[ctx.reads] = grad
        return whole, None


class QuantLayer(nn.Module):
    """y = f(a(x), w()): an activation quantizer `a`, a weight quantizer `w`, an unquantized bias.

    Without a weight quantizer the float weight is a parameter; without an activation quantizer the
    input is used as it is. The metadata of a state_dict say how the layer is quantized, so that it
    is not loaded into a layer that is quantized otherwise.
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
        self.reads: tuple[int, ...] | None = None
        if isinstance(layer, nn.Conv2d):
            stride = layer.stride
            if layer.kernel_size == (1, 1) and layer.padding == (0, 0) and stride != (1, 1):
                # A strided 1x1 convolution reads only every s-th pixel, so only those are
                # quantized and fitted: the stride is taken here.
                self.reads, stride = stride, (1, 1)
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
        if self.convolution is None and x.dim() != 2 and not also_relu:  # channels are last
            y = self.forward(x.reshape(-1, x.shape[-1]))
            return y.view(*x.shape[:-1], y.shape[-1])  # type: ignore[union-attr]
        quantizer = self.activation_quantizer
        if self.reads is not None and not also_relu:
            x = EverySthPixel.apply(x, self.reads)
        if quantizer is None:
            return self._compute(x)
        if quantizer.calibrating:
            quantizer.calibrate(x)
        if also_relu:
            relu, y = quantizer(x, also_relu=True)
            return relu, self._compute(
                y if self.reads is None else EverySthPixel.apply(y, self.reads)
            )
        return self._compute(quantizer(x))

    def _compute(self, x: Tensor) -> Tensor:
        if self.convolution is None:
            return functional.linear(x, self.used_weight(), self.bias)
        return functional.conv2d(x, self.used_weight(), self.bias, *self.convolution)

    def settings(self) -> dict[str, str | int | bool | None]:
        """What two layers must have in common for one to load the state of the other."""
        w, a = self.weight_quantizer, self.activation_quantizer
        return {
            "weights": None if w is None else type(w).__name__,
            "w_bits": None if w is None else w.bits,
            "activations": None if a is None else type(a).__name__,
            "a_bits": None if a is None else a.bits,
            "signed": None if a is None else a.signed,
        }

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {})
        metadata.get(prefix[:-1], {})["settings"] = self.settings()

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        own, saved = self.settings(), local_metadata.get("settings")
        if saved is not None and saved != own:
            errors = rest[-1]
            errors.append(
                f"layer {prefix[:-1]!r} is quantized by {own}, and its saved state by {saved}: "
                "convert the model with the method, bits and signed inputs of the saved one"
            )


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in training or evaluation mode; then every module in its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, was in modes.items():
            module.training = was


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor) -> None:
    """Set every activation quantizer's initial range from one batch (N, C, H, W).

    In forward order, so that each sees quantized inputs. In training mode, because the running
    statistics of batch norm do not fit the quantized weights yet.
    """
    quantizers = [m for m in model.modules() if isinstance(m, ActivationQuantizer)]
    for quantizer in quantizers:
        quantizer.calibrating = True
    with mode(model, training=True):
        model(images)
    for quantizer in quantizers:
        quantizer.calibrating = False
