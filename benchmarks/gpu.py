"""First contact with a GPU: `python -m benchmarks.gpu`. Torch, torchvision and NumPy are enough.

Checks that every quantizer gives on the device what it gives, as it is written, on the processor.
Measures training steps in bfloat16, and how many processes use the device best. One JSON file holds
the device, the figures and the verdicts; it is written anew after every part.
"""

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch

import baselines
from benchmarks.agreement import disagreement
from benchmarks.steps import CORE, NETWORKS, Network, Setting, compare, training_step
from benchmarks.timing import DEVICE, now
from lowbit_core.kernels.fused import set_compile
from lowbit_core.runtime import hardware
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import write_json
from lowbit_core.runtime.progress import say

RATIO_BAR = 1.15  # of a quantized step to the full-precision step of the same precision
EPOCH = 50_000  # images of CIFAR-100
# No piece of a part begins later than this share of the minutes; the last one is finished.
LATEST = {"eager": 0.15, "kernels": 0.3, "quantizers": 0.5, "processes": 0.6, "model": 0.65}
BITS = (2, 1, 4, 3, 8)  # the most important first: time may run out
KINDS = {None: "weight", False: "unsigned activation", True: "signed activation"}
MOST_DISAGREEING = 1e-3  # share of values: those that lie on the boundary of two levels
SMALL = {"stem": "small"}
NETWORKS_OF_GPU = (NETWORKS["resnet20"], Network("resnet18", SMALL), Network("mobilenetv2", SMALL))
TINY = Network("resnet20", {"width": 8}, batch=8, side=8)


@dataclass
class GpuCheck:
    """The device, the time there is, and what was found so far."""

    device: torch.device
    tiny: bool
    seconds: float
    found: dict
    path: Path
    began: float = field(default_factory=time.monotonic)

    def attempt(self, part: str, label: str, call: Callable, *arguments: object):
        """The call's result; None, with a note in `found`, if it is too late or the call fails."""
        if time.monotonic() - self.began > LATEST[part] * self.seconds:
            self.found["left_out"].append(label)
            return None
        try:
            return call(*arguments)
        except Exception as error:  # a finding, too: the other pieces still run
            self.found["errors"][label] = f"{type(error).__name__}: {error}"[:2000]
            return None

    def verdict(self, name: str, value: float, bar: float) -> None:
        self.found["verdicts"][name] = {"value": value, "bar": bar, "ok": value <= bar}

    def save(self) -> None:
        self.verdict("errors", len(self.found["errors"]), 0)
        self.found["seconds"] = time.monotonic() - self.began
        write_json(self.path, self.found)


def check_agreement(check: GpuCheck) -> None:
    """Every method, bit-width, sign and type; on a GPU eager first, then as kernels."""
    names = [name for name, method in baselines.METHODS.items() if method.weight is not None]
    bits = BITS[:1] if check.tiny else BITS
    cases = [
        case
        for case in product(bits, names, KINDS, (torch.float32, torch.bfloat16))
        if case[2] is not None or baselines.method(case[1]).offers(case[0])
    ]
    checked, disagree = 0, {}
    for mode in ("kernels",) if check.device.type == "cpu" else ("eager", "kernels"):
        say(f"agreement with the processor, {mode}")
        for width, name, signed, dtype in cases:
            label = f"{mode}, {width} bits, {name}, {KINDS[signed]}, {str(dtype)[6:]}"
            given = ((name, width, signed, dtype), check.device, check.tiny, mode == "kernels")
            if shares := check.attempt(mode, label, disagreement, *given):
                checked += 1
                if max(shares.values()) > MOST_DISAGREEING:
                    disagree[label] = shares
    check.found["agreement"] = {"checked": checked, "disagree": disagree}
    check.verdict("agreement", len(disagree), 0)
    check.found["verdicts"]["agreement"]["ok"] &= checked > 0
    check.save()


def measure_steps(check: GpuCheck, network: Network, compile: str, methods: tuple) -> None:
    """Rows of `compare` in bfloat16, with the seconds of an epoch; a verdict for each method."""
    setting = Setting(network, precision="bf16", compile=compile, device=check.device)
    label = f"steps of {network.arch}, compile {compile}, {', '.join(methods)}"
    say(label)
    rows = check.attempt(compile, label, compare, setting, methods, 3 if check.tiny else 15)
    for row in rows or ():
        check.found["steps"].append(row | {"epoch_s": EPOCH / network.batch * row["ms"] / 1000})
        if row["method"] != "fp":
            check.verdict(f"{row['arch']}, {compile}, {row['method']}", row["ratio"], RATIO_BAR)
    check.save()


_worker: dict = {}  # of a process that shares the device: what `_prepare` made


def _prepare(barriers: dict, setting: Setting, threads: int) -> None:
    torch.set_num_threads(threads)
    set_compile(True)
    step = training_step("direct", setting)
    step(), step()
    _worker.update(barriers=barriers, step=step, batch=setting.network.batch)


def _images_per_second(processes: int, seconds: float) -> float:
    """What this process trains while `processes` in all do the same for `seconds`."""
    _worker["barriers"][processes].wait(timeout=60)  # so that each process gets one call
    began, images = now(), 0
    while (passed := now() - began) < seconds:
        for _ in range(5):
            _worker["step"]()
        images += 5 * _worker["batch"]
    return images / passed


def share_device(setting: Setting, counts: tuple, seconds: float) -> dict[str, float]:
    """{number of processes: images/s of all of them (direct, W2A2)}; counts fall."""
    context = get_context("spawn")
    barriers = {count: context.Barrier(count) for count in counts}
    prepared = (barriers, setting, max(1, torch.get_num_threads() // counts[0]))
    totals = {}
    with ProcessPoolExecutor(counts[0], context, _prepare, prepared) as pool:
        for count in counts:
            calls = [pool.submit(_images_per_second, count, seconds) for _ in range(count)]
            totals[str(count)] = sum(call.result() for call in calls)
    return totals


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), default=DEVICE.type)
    add("--out", type=Path, default=Path("results/benchmarks/gpu.json"))
    add("--minutes", type=float, default=4)
    add("--quick", action="store_true", help="tiny sizes; always so on the processor")
    given = parser.parse_args()
    if not given.minutes > 0:
        raise InputError(f"--minutes is {given.minutes:g}: it must be above 0")
    if given.device == "cuda" and DEVICE.type != "cuda":
        raise InputError("--device cuda: torch finds no GPU here; choose --device cpu")
    return given


def main() -> None:
    given = _arguments()
    device, tiny = torch.device(given.device), given.quick or given.device == "cpu"
    found = {"device": hardware.hardware_name(device), "versions": hardware.versions()}
    found |= {"instruction_set": hardware.instruction_set(), "commit": hardware.git_commit()}
    found |= {"cuda": torch.version.cuda, "tiny": tiny, "steps": [], "verdicts": {}}
    found |= {"left_out": [], "errors": {}}
    check = GpuCheck(device, tiny, 60 * given.minutes, found, given.out)
    networks = (TINY,) if tiny else NETWORKS_OF_GPU
    check_agreement(check)
    for network in networks:
        measure_steps(check, network, "quantizers", ("fp", "direct") if tiny else CORE)
    say("processes that share the device")
    setting = Setting(networks[0], precision="bf16", device=device)
    how = ((2, 1), 0.1) if tiny else ((8, 4, 2, 1), 3.0)
    found["processes"] = check.attempt("processes", "processes", share_device, setting, *how)
    for methods in () if tiny else (("fp", "direct"), ("fp", "dorefa", "pact", "lq_nets")):
        for network in networks:
            measure_steps(check, network, "model", methods)
    check.save()
    for name, verdict in found["verdicts"].items():
        word = "met" if verdict["ok"] else "NOT met"
        print(f"{name}: {verdict['value']:.3g}, at most {verdict['bar']}: {word}")
    print(f"{given.out} is written; {len(found['left_out'])} pieces were left out for lack of time")
    sys.exit(0 if found["verdicts"]["agreement"]["ok"] and not found["errors"] else 1)


if __name__ == "__main__":
    run_cli(main)
