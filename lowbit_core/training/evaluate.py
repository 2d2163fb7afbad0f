"""Loss and accuracy of a run's network on images that it is not trained on."""

from contextlib import closing
from itertools import islice

import torch
from torch import nn
from torch.nn import functional

from lowbit_core.data.loader import BatchLoader, channels_last
from lowbit_core.parallel import processes
from lowbit_core.training.build import Run


@torch.no_grad()
def evaluate(run: Run, data: BatchLoader, network: nn.Module | None = None) -> dict[str, float]:
    """Mean loss, top-1 and top-5 in percent, over all images of `data` in all processes.

    network: what is evaluated; by default the run's model, or its moving average if it has one.
    """
    model = network or (run.model if run.ema is None else run.ema)
    if batches := run.recipe.get("reestimate_batch_norm"):
        reestimate_batch_norm(model, run.data.train, batches, run.autocast())
    model.eval()
    # Summed on the device: reading a number back would make the processor wait in every batch.
    sums = torch.zeros(4, dtype=torch.float64, device=run.place.device)
    for images, labels in channels_last(data.epoch(0)):
        with run.autocast():
            scores = model(images).float()
        best = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
        sums[0] += functional.cross_entropy(scores, labels, reduction="sum")
        sums[1] += best[:, 0].sum()
        sums[2] += best.sum()
        sums[3] += len(labels)
    loss, top1, top5, count = processes.summed(sums).tolist()
    return {"loss": loss / count, "top1": 100 * top1 / count, "top5": 100 * top5 / count}


@torch.no_grad()
def reestimate_batch_norm(
    model: nn.Module, data: BatchLoader, batches: int, autocast: torch.autocast
) -> None:
    """Set the running statistics of batch norm to the plain means over at most `batches` batches.

    The means and variances of the first training batches of `data`'s epoch 0, which is no epoch of
    training: the result depends on nothing but the weights. The rest of the network is in
    evaluation mode (Nagel et al. 2022, section 4.1). Training goes on with these statistics, which
    change nothing in it: in training, batch norm uses the batch's own.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    sums = [(torch.zeros_like(n.running_mean), torch.zeros_like(n.running_var)) for n in norms]
    kept = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # the running statistics are then those of the last batch
    count = 0
    with closing(data.epoch(0)) as epoch:
        for images, _ in channels_last(islice(epoch, batches)):
            with autocast:
                model(images)
            for norm, (mean, variance) in zip(norms, sums, strict=True):
                mean += norm.running_mean
                variance += norm.running_var
            count += 1
    for norm, (mean, variance), (momentum, tracked) in zip(norms, sums, kept, strict=True):
        norm.running_mean.copy_(mean / count)
        norm.running_var.copy_(variance / count)
        norm.momentum = momentum
        norm.num_batches_tracked.copy_(tracked)
    model.eval()
