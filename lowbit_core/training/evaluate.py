"""Loss and accuracy of a run's network on images that it is not trained on."""

import torch
from torch.nn import functional

from lowbit_core.data.loader import BatchLoader, channels_last
from lowbit_core.parallel import processes
from lowbit_core.training.build import Run


@torch.no_grad()
def evaluate(run: Run, data: BatchLoader) -> dict[str, float]:
    """Mean loss, top-1 and top-5 in percent, over all images of `data` in all processes."""
    model = run.model if run.ema is None else run.ema
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
