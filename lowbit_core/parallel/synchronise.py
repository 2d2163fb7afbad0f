"""Keep the processes of one run equal: gradients, weights, and batch norm over the whole batch."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowbit_core.parallel.processes import summed, world


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, which have equal parts of the batch.

    They are sent as one tensor, always in the same order, so that a resumed run has the same bits.
    """
    if world() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world()
    for g, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        g.copy_(part.view(g.shape))


@torch.no_grad()
def broadcast(model: nn.Module) -> None:
    """Copy the first process's parameters and buffers to all the others."""
    if world() > 1:
        for tensor in model.state_dict().values():
            sent = tensor.contiguous()
            dist.broadcast(sent, 0)
            tensor.copy_(sent)


@torch.no_grad()
def keep_greatest(counts: list[Tensor]) -> None:
    """Set every counter (a tensor of one number) to its greatest value in any process."""
    if world() > 1 and counts:
        greatest = torch.stack(counts)
        dist.all_reduce(greatest, dist.ReduceOp.MAX)
        for count, value in zip(counts, greatest, strict=True):
            count.copy_(value)


def synchronise_batch_norm(model: nn.Module) -> None:
    """Let the batch norms of `model` see the whole batch; parameters and buffers are kept."""
    if world() == 1:
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(module, name, SyncBatchNorm.like(child))


class _Sum(torch.autograd.Function):
    """The sum of x over the processes; its gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx, x):
        return summed(x)

    @staticmethod
    def backward(ctx, g):
        return summed(g.contiguous())


class SyncBatchNorm(nn.SyncBatchNorm):
    """torch's synchronised batch norm, which refuses CPU tensors, and the same for CPU tensors."""

    @classmethod
    def like(cls, norm: nn.modules.batchnorm._BatchNorm) -> "SyncBatchNorm":
        made = cls(norm.num_features, norm.eps, norm.momentum)
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(made, name, getattr(norm, name))
        made.train(norm.training)
        return made

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda or not self.training:
            return super().forward(x)
        wide = x.to(self.weight.dtype)
        but_channel = [0, *range(2, x.dim())]
        shape = (1, -1, *[1] * (x.dim() - 2))
        count = x.numel() // x.shape[1] * world()
        mean = _Sum.apply(wide.sum(but_channel)) / count
        centred = wide - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(but_channel)) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)
