"""First contact with a GPU: `python -m benchmarks.gpu`. Torch, torchvision and NumPy are enough.

Checks that every quantizer gives on the device what it gives, as it is written, on the processor.
Measures training steps in bfloat16, and how many processes use the device best. One JSON file holds
the device, the figures and the verdicts; it is written anew after every piece.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

import baselines
from benchmarks.steps import METHODS, NETWORKS, Network, Setting, compare, training_step
from benchmarks.timing import DEVICE, now
from lowbit_core.kernels.fused import set_compile
from lowbit_core.quantizers.interface import WeightQuantizer
from lowbit_core.runtime import hardware
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import write_json
from lowbit_core.runtime.progress import say

RATIO_BAR = 1.15  # of a quantized step to the full-precision step of the same precision
EPOCH = 50_000  # images of CIFAR-100
BITS = (2, 1, 4, 3, 8)  # the most important first: time may run out
# Values count as equal up to this share of the largest one. A bfloat16 level may be rounded once.
LEVELS = {torch.float32: 1e-5, torch.bfloat16: 2**-9}
GRADIENTS = {torch.float32: 1e-4, torch.bfloat16: 2**-8}
STATE = 1e-3  # of bases that a fit moved: its sums are taken in another order
# A value on the boundary of two levels, to the last digit, may take either.
BOUNDARY = 1e-3  # the share of values that may differ
# No piece of a part begins later than this share of the minutes; the last one is finished.
LATEST = {"eager": 0.15, "kernels": 0.3, "quantizers": 0.5, "processes": 0.6, "model": 0.65}

GPU_NETWORKS = (
    NETWORKS["resnet20"],
    Network("resnet18", {"stem": "small"}),
    Network("mobilenetv2", {"stem": "small"}),
)
TINY = Network("resnet20", {"width": 8}, batch=8, side=8)


@dataclass
class Contact:
    """The device, the time that is left, and what was found so far."""

    device: torch.device
    tiny: bool
    seconds: float
    found: dict
    path: Path
    began: float = field(default_factory=time.monotonic)

    def attempt(self, part: str, label: str, call: Callable, *arguments: object) -> object:
        """The call's result; None, with a note in `found`, if it is too late or the call fails.

        An error is a finding: the other pieces still run.
        """
        if time.monotonic() - self.began > LATEST[part] * self.seconds:
            self.found["left_out"].append(label)
            return None
        try:
            return call(*arguments)
        except Exception as error:
            self.found["errors"][label] = f"{type(error).__name__}: {error}"[:2000]
            return None

    def save(self) -> None:
        failed = len(self.found["errors"])
        self.found["verdicts"]["errors"] = {"value": failed, "bar": 0, "ok": failed == 0}
        self.found["seconds"] = time.monotonic() - self.began
        write_json(self.path, self.found)


# -- agreement ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One quantizer and its input; `signed` is None for a weight."""

    method: str
    bits: int
    signed: bool | None
    dtype: torch.dtype

    def label(self) -> str:
        kind = {None: "weight", True: "signed activation", False: "activation"}[self.signed]
        return f"{self.method}, {kind}, {self.bits} bits, {str(self.dtype).split('.')[1]}"


def cases(tiny: bool) -> Iterator[Case]:
    names = [name for name, method in baselines.METHODS.items() if method.weight is not None]
    bits = BITS[:1] if tiny else BITS
    for each in product(bits, names, (None, False, True), (torch.float32, torch.bfloat16)):
        yield Case(each[1], each[0], *each[2:])


def check(case: Case, contact: Contact, kernels: bool) -> dict[str, float]:
    """The share of values that differ between the device and the eager quantizer here.

    Keys: `levels`, `gradients` (of the input and of parameters), `state` (after the step).
    """
    set_compile(False)
    torch.manual_seed(0)
    method = baselines.method(case.method)
    shape = (4, 8, 8, 8) if contact.tiny else (16, 32, 16, 16)
    if case.signed is None:
        shape = (8, 16, 3, 3) if contact.tiny else (32, 128, 3, 3)
        x = 0.05 * torch.randn(shape)
        quantizer = method.weight(x, case.bits)
    else:
        x = torch.randn(shape) * torch.logspace(-0.5, 0.5, shape[1]).view(-1, 1, 1)
        x = x.to(case.dtype).contiguous(memory_format=torch.channels_last)
        quantizer = method.activation(case.bits, case.signed)
        quantizer.calibrate(x)
    g = torch.randn(shape).to(case.dtype)
    tested = copy.deepcopy(quantizer).to(contact.device)
    expected = _step(quantizer, x, g)
    set_compile(kernels)
    found = _step(tested, x.to(contact.device), g.to(contact.device))
    bounds = {"levels": LEVELS[case.dtype], "gradients": GRADIENTS[case.dtype], "state": STATE}
    return {
        key: max(differing(*pair, bound) for pair in zip(found[key], expected[key], strict=True))
        for key, bound in bounds.items()
    }


def _step(quantizer: torch.nn.Module, x: Tensor, g: Tensor) -> dict[str, list[Tensor]]:
    """Forward and backward in training mode; an unsigned activation also returns its ReLU."""
    leaves = list(quantizer.train().parameters())
    if isinstance(quantizer, WeightQuantizer):
        outputs = [quantizer().to(g.dtype)]
    else:
        leaves.append(x.detach().requires_grad_())
        outputs = quantizer(leaves[-1], not quantizer.signed)
        outputs = [outputs] if quantizer.signed else list(outputs)
    torch.autograd.backward(outputs, [g] * len(outputs))
    gradients = [leaf.grad for leaf in leaves]
    return {"levels": outputs, "gradients": gradients, "state": [*quantizer.state_dict().values()]}


def differing(found: Tensor, expected: Tensor, bound: float) -> float:
    """The share of values whose distance is more than `bound` times the largest; NaN differs."""
    found, expected = found.detach().cpu().double(), expected.detach().double()
    near = (found - expected).abs() <= bound * expected.abs().max()
    return 1 - near.double().mean().item()


def check_all(contact: Contact) -> None:
    """`agreement`: how many cases were checked, eager and as kernels, and those that disagree."""
    rows, disagree = 0, []
    modes = ("kernels",) if contact.device.type == "cpu" else ("eager", "kernels")
    for mode in modes:
        say(f"agreement with the processor, {mode}")
        for case in cases(contact.tiny):
            label = f"{case.label()}, {mode}"
            if shares := contact.attempt(mode, label, check, case, contact, mode == "kernels"):
                rows += 1
                disagree += [{"case": label, **shares}] if max(shares.values()) > BOUNDARY else []
    contact.found["agreement"] = {"checked": rows, "disagree": disagree}
    verdict = {"value": len(disagree), "bar": 0, "ok": rows > 0 and not disagree}
    contact.found["verdicts"]["agreement"] = verdict
    contact.save()


# -- training steps ----------------------------------------------------------------------------


def measure_steps(contact: Contact, network: Network, compile: str, methods: tuple) -> None:
    """Rows of `compare` in bfloat16, with the seconds of an epoch; a verdict for each method."""
    setting = Setting(network, precision="bf16", compile=compile, device=contact.device)
    label = f"{network.arch}, compile {compile}, {', '.join(methods)}"
    say(f"training steps of {label}")
    rows = contact.attempt(compile, label, compare, setting, methods, 3 if contact.tiny else 15)
    for row in rows or ():
        row["epoch_s"] = EPOCH / network.batch * row["ms"] / 1000
        contact.found["steps"].append(row)
        if row["method"] != "fp":
            verdict = {"value": row["ratio"], "bar": RATIO_BAR, "ok": row["ratio"] <= RATIO_BAR}
            contact.found["verdicts"][f"{row['arch']}, {compile}, {row['method']}"] = verdict
    contact.save()


# -- processes that share the device -----------------------------------------------------------

_worker: dict = {}  # of a worker process: what `_prepare` made


def _prepare(barriers: dict, setting: Setting, threads: int) -> None:
    torch.set_num_threads(threads)
    set_compile(True)
    step = training_step("direct", setting)
    step(), step()
    _worker.update(barriers=barriers, step=step, batch=setting.network.batch)


def _images_per_second(processes: int, seconds: float) -> float:
    """What this process trains while `processes` in all do the same for `seconds`."""
    _worker["barriers"][processes].wait(timeout=120)  # so that each process gets one call
    began, steps = now(), 0
    while (passed := now() - began) < seconds:
        for _ in range(5):
            _worker["step"]()
        steps += 5
    return steps * _worker["batch"] / passed


def share_device(setting: Setting, tiny: bool) -> list[dict]:
    """Images/s of all processes together (direct, W2A2), for several numbers of processes."""
    counts, seconds = ((2, 1), 0.1) if tiny else ((8, 4, 2, 1), 3)
    context = get_context("spawn")
    barriers = {count: context.Barrier(count) for count in counts}
    threads = max(1, torch.get_num_threads() // counts[0])
    prepared = (barriers, setting, threads)
    rows = []
    with ProcessPoolExecutor(counts[0], context, _prepare, prepared) as pool:
        for count in counts:
            calls = [pool.submit(_images_per_second, count, seconds) for _ in range(count)]
            total = sum(call.result() for call in calls)
            rows.append({"processes": count, "images_per_second": total})
    return rows[::-1]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), default=DEVICE.type)
    add("--out", type=Path, default=Path("results/benchmarks/gpu.json"))
    add("--minutes", type=float, default=4)
    add("--quick", action="store_true", help="tiny sizes; always so on the processor")
    given = parser.parse_args()
    if given.device == "cuda" and DEVICE.type != "cuda":
        raise InputError("--device cuda: torch finds no GPU here; choose --device cpu")
    return given


def main() -> None:
    given = _arguments()
    device, tiny = torch.device(given.device), given.quick or given.device == "cpu"
    found = {"device": hardware.hardware_name(device), "versions": hardware.versions()}
    found |= {"instruction_set": hardware.instruction_set(), "commit": hardware.git_commit()}
    found |= {"tiny": tiny, "cuda": torch.version.cuda, "agreement": {}, "steps": []}
    found |= {"processes": None, "verdicts": {}, "left_out": [], "errors": {}}
    contact = Contact(device, tiny, 60 * given.minutes, found, given.out)
    networks = (TINY,) if tiny else GPU_NETWORKS
    check_all(contact)
    for network in networks:
        measure_steps(contact, network, "quantizers", ("fp", "direct") if tiny else METHODS)
    say("processes that share the device")
    setting = Setting(networks[0], precision="bf16", device=device)
    found["processes"] = contact.attempt("processes", "processes", share_device, setting, tiny)
    if not tiny:
        for methods in (("fp", "direct"), ("fp", "dorefa", "pact", "lq_nets")):
            for network in networks:
                measure_steps(contact, network, "model", methods)
    contact.save()
    for name, verdict in found["verdicts"].items():
        word = "met" if verdict["ok"] else "NOT met"
        print(f"{name}: {verdict['value']:.3g}, at most {verdict['bar']}: {word}")
    print(f"{given.out} is written; {len(found['left_out'])} pieces were left out for lack of time")
    if not (found["verdicts"]["agreement"]["ok"] and found["verdicts"]["errors"]["ok"]):
        sys.exit(1)


if __name__ == "__main__":
    run_cli(main)
