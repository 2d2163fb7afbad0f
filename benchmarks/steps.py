"""Time and memory of a whole training step: each method and each peer against full precision."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn
from torch.nn import functional

import baselines
from benchmarks.peers import PEERS, peers_found
from benchmarks.timing import DEVICE, ratios, timed
from lowbit_core import models
from lowbit_core.conversion.layers import calibrate
from lowbit_core.conversion.policy import QuantPolicy
from lowbit_core.conversion.swap import convert
from lowbit_core.kernels.fused import set_compile
from lowbit_core.quantizers.bits import FLOAT_BITS
from lowbit_core.quantizers.interface import Method
from lowbit_core.runtime.hardware import computes_bfloat16
from lowbit_core.runtime.progress import say


@dataclass(frozen=True)
class Network:
    """A network with 100 classes, and the batch of square RGB images that it is trained on."""

    arch: str
    options: dict
    batch: int = 128
    side: int = 32


NETWORKS = {
    "resnet20": Network("resnet20", {"width": 16}),
    "alexnet": Network("alexnet", {"width": 32, "stem": "small"}),
    "mobilenetv2": Network("mobilenetv2", {"width": 0.5, "stem": "small"}),
}
CORE = ("fp", "dorefa", "pact", "lsq", "lq_nets", "lq_channel_aware", "direct_plain", "direct")
METHODS = tuple(name for name, method in baselines.METHODS.items() if not method.ablation)
COMPILE = ("off", "quantizers", "model")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Setting:
    """What all training steps of one comparison have in common; see `bits_of` for the bits."""

    network: Network
    w_bits: int = 2
    a_bits: int = 2
    precision: str = "fp32"
    compile: str = "quantizers"
    device: torch.device = DEVICE


def _method(name: str) -> Method:
    return PEERS.get(name) or baselines.method(name)


def bits_of(method: str, setting: Setting) -> tuple[int, int]:
    """The bits of weights and activations that a method is measured with: those of the setting.

    A method that does not offer them has the width that it offers nearest to that of the weights,
    for weights and activations alike. `fp` has 32.
    """
    if method == "fp":
        return FLOAT_BITS, FLOAT_BITS
    offered = _method(method).w_bits
    if offered is None or setting.w_bits in offered:
        return setting.w_bits, setting.a_bits
    nearest = min(offered, key=lambda bits: abs(bits - setting.w_bits))
    return nearest, nearest


def training_step(method: str, setting: Setting) -> Callable[[], None]:
    """One step on random images: forward, loss, backward, SGD with momentum."""
    network, device = setting.network, setting.device
    torch.manual_seed(0)
    model = models.build(network.arch, 100, 3, **network.options).to(device)
    images = torch.randn(network.batch, 3, network.side, network.side, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(100, (network.batch,), device=device)
    if method != "fp":
        convert(model, QuantPolicy(_method(method), *bits_of(method, setting)), images[:1])
    model = model.to(memory_format=torch.channels_last)
    if method != "fp":
        calibrate(model, images)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
    called: nn.Module = model
    if setting.compile == "model":  # as in training: "reduce-overhead" uses CUDA graphs
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        called = torch.compile(model, mode=mode)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)  # first, as in training
        with torch.autocast(device.type, torch.bfloat16, enabled=setting.precision == "bf16"):
            scores = called(images)
        functional.cross_entropy(scores.float(), labels).backward()
        optimizer.step()

    return step


def compare(setting: Setting, methods: Iterable[str], rounds: int) -> list[dict]:
    """Rows: arch, method, bits, precision, compile, ms, peak MB, and their ratios to `fp`."""
    set_compile(setting.compile != "off")
    steps = {name: training_step(name, setting) for name in methods}
    measured = ratios(timed(steps, rounds), "fp")
    peaks = {name: peak_bytes(step, setting.device) for name, step in steps.items()}
    rows = []
    for name, row in measured.items():
        about = {"arch": setting.network.arch, "method": name}
        about |= dict(zip(("w_bits", "a_bits"), bits_of(name, setting), strict=True))
        about |= {"precision": setting.precision, "compile": setting.compile}
        memory = {"peak_mb": peaks[name] / 2**20, "peak_ratio": peaks[name] / peaks["fp"]}
        rows.append(about | row | memory)
    return rows


def measure(
    archs: Iterable[str],
    rounds: int,
    compile: str = "quantizers",
    bits: int = 2,
    precisions: Iterable[str] = PRECISIONS,
) -> Iterator[dict]:
    """The rows of `compare` for each network and precision, each against `fp` in that precision.

    The peers that can be imported and offer the bits are among the methods, unless whole networks
    are compiled.
    """
    methods = [*METHODS, *([] if compile == "model" else peers_found(bits))]
    if "bf16" in precisions and DEVICE.type == "cpu" and not computes_bfloat16():
        say("this processor has no bfloat16 instructions: the rows of bf16 are left out")
        precisions = [name for name in precisions if name != "bf16"]
    for precision in precisions:
        for arch in archs:
            say(f"training steps of {arch}, {precision}, compile {compile}")
            setting = Setting(NETWORKS[arch], bits, bits, precision, compile)
            yield from compare(setting, methods, rounds)


def peak_bytes(call: Callable[[], object], device: torch.device = DEVICE) -> int:
    """The most bytes of tensors that `call` holds at once, in addition to those from before."""
    if device.type == "cuda":
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
