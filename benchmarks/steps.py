"""Time and memory of a whole training step: each method against full precision."""

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import nn
from torch.nn import functional

import baselines
from benchmarks.timing import DEVICE, ratios, timed
from lowbit_core import models
from lowbit_core.conversion.layers import calibrate
from lowbit_core.conversion.policy import QuantPolicy
from lowbit_core.conversion.swap import convert
from lowbit_core.kernels.fused import set_compile
from lowbit_core.runtime.progress import say

STEM = {"stem": "small_stride2"}
NETWORKS: dict[str, tuple[dict, int, int, int]] = {  # name: (options, batch, channels, side)
    "resnet20": ({"width": 16}, 128, 3, 32),
    "alexnet": ({"width": 16} | STEM, 128, 1, 28),
    "mobilenetv2": ({"width": 0.25, "repeats": 1, "last_channels": 128} | STEM, 128, 1, 28),
}
METHODS = ("fp", "dorefa", "pact", "lq_nets", "lq_channel_aware", "direct_plain", "direct")
COMPILE = ("off", "quantizers", "model")


def training_step(arch: str, method: str, bits: int, compile: str) -> Callable[[], None]:
    """One step on random images: forward, loss, backward, SGD with momentum."""
    options, batch, channels, side = NETWORKS[arch]
    torch.manual_seed(0)
    model = models.build(arch, 100, channels, **options).to(DEVICE)
    images = torch.randn(batch, channels, side, side, device=DEVICE)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(100, (batch,), device=DEVICE)
    if method != "fp":
        convert(model, QuantPolicy(baselines.method(method), bits, bits), images[:1])
        calibrate(model, images)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
    network: nn.Module = torch.compile(model) if compile == "model" else model

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
            scores = network(images)
        functional.cross_entropy(scores.float(), labels).backward()
        optimizer.step()

    return step


def measure(archs, rounds: int, compile: str = "quantizers", bits: int = 2) -> list[dict]:
    """Rows: arch, method, bits, compile, ms, peak MB, and their ratios to `fp`."""
    rows = []
    for arch in archs:
        set_compile(compile != "off")
        say(f"training steps of {arch}, compile {compile}")
        steps = {name: training_step(arch, name, bits, compile) for name in METHODS}
        measured = ratios(timed(steps, rounds), "fp")
        peaks = {name: peak_bytes(step) for name, step in steps.items()}
        for name, row in measured.items():
            about = {"arch": arch, "method": name, "bits": 32 if name == "fp" else bits}
            memory = {"peak_mb": peaks[name] / 2**20, "peak_ratio": peaks[name] / peaks["fp"]}
            rows.append(about | {"compile": compile} | row | memory)
    return rows


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes of tensors that `call` holds at once, in addition to those from before."""
    if DEVICE.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = (event.nbytes() for event in sorted(events, key=lambda e: e.start_ns()))
    return max(accumulate(sizes, initial=0))
