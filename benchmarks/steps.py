"""Time and memory of a whole training step: each method against full precision.

One network alone: `python -m benchmarks.steps --arch resnet20`.
"""

import argparse
from collections.abc import Callable

import pandas as pd
import torch
from torch import nn
from torch.nn import functional

import baselines
from benchmarks.quantizers import device
from benchmarks.timing import ratios, say, timed
from lowbit_core import models
from lowbit_core.conversion.layers import calibrate
from lowbit_core.conversion.policy import QuantPolicy
from lowbit_core.conversion.swap import convert
from lowbit_core.kernels.fused import set_compile
from lowbit_core.runtime.errors import InputError, run_cli

NETWORKS = {  # name: (options, batch, channels, side)
    "resnet20": ({"width": 16}, 128, 3, 32),
    "alexnet": ({"width": 16, "stem": "small_stride2"}, 128, 1, 28),
    "mobilenetv2": (
        {"width": 0.25, "stem": "small_stride2", "repeats": 1, "last_channels": 128}, 128, 1, 28,
    ),
}  # fmt: skip
METHODS = ("fp", "dorefa", "pact", "lq_nets", "lq_channel_aware", "direct_plain", "direct")
COMPILE = ("off", "quantizers", "model")


def training_step(arch: str, method: str, bits: int, compile: str) -> Callable[[], None]:
    """One step on random images: forward, loss, backward, SGD with momentum."""
    options, batch, channels, side = NETWORKS[arch]
    torch.manual_seed(0)
    model = models.build(arch, 100, channels, **options).to(device())
    images = torch.randn(batch, channels, side, side, device=device())
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(100, (batch,), device=device())
    if method != "fp":
        convert(model, QuantPolicy(baselines.method(method), bits, bits), images[:1])
    model = model.to(memory_format=torch.channels_last)
    if method != "fp":
        calibrate(model, images)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
    network: nn.Module = torch.compile(model) if compile == "model" else model

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device().type, torch.bfloat16, enabled=device().type == "cuda"):
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
            memory = {"peak_mb": peaks[name] / 2**20, "peak_ratio": peaks[name] / peaks["fp"]}
            about = {"arch": arch, "method": name, "bits": 32 if name == "fp" else bits}
            rows.append(about | {"compile": compile} | row | memory)
    return rows


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes of tensors that `call` holds at once, in addition to those from before."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    held = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", choices=tuple(NETWORKS), action="append")
    parser.add_argument("--compile", choices=COMPILE, default="quantizers")
    parser.add_argument("--bits", type=int, choices=(1, 2, 3, 4, 8), default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.threads < 1:
        raise InputError("--rounds and --threads must be at least 1")
    torch.set_num_threads(arguments.threads)
    archs = arguments.arch or list(NETWORKS)
    rows = measure(archs, arguments.rounds, arguments.compile, arguments.bits)
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    run_cli(main)
