"""Tables for docs/ of training steps and of the start of a job, from what the benchmarks wrote."""

from functools import cache

import pandas as pd
import torch

import baselines
from benchmarks.pages.evidence import markdown
from benchmarks.peers import PEERS
from benchmarks.steps import NETWORKS
from lowbit_core import models
from lowbit_core.conversion.policy import QuantPolicy
from lowbit_core.conversion.swap import convert
from lowbit_core.quantizers.bits import bits_label
from workflow.results.labels import arch_name, method_label, method_order

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}
AIMS: dict[tuple[str, str], tuple[float, ...]] = {
    ("fp32", "resnet20"): (1.08,),
    ("fp32", "alexnet"): (1.15,),
    ("fp32", "mobilenetv2"): (1.15,),
    ("bf16", "resnet20"): (1.15, 1.25),
    ("bf16", "alexnet"): (1.20,),
    ("bf16", "mobilenetv2"): (1.20,),
}
"""The most that a quantized step may take, as a ratio to full precision in the same precision.

Where there are two, the second is the one that every method has to reach.
"""
START_AIM = 8  # seconds from the start of a job to the end of its first step
PEER_LABELS = {"brevitas": "Brevitas"}
USUAL = "W2A2"  # the bits that the page's title names


def _label(method: str, w_bits: int, a_bits: int) -> str:
    """`PACT`; with its bits where they are not the usual ones: `AdaBin (W1A1)`."""
    label, bits = PEER_LABELS.get(method, method_label(method)), bits_label(w_bits, a_bits)
    return label if bits == USUAL else f"{label} ({bits})"


def steps(found: pd.DataFrame) -> str:
    """A row for each method and precision; time and memory of each network against `fp`."""
    found = found.query("method != 'fp'")
    rows = []
    names = ["method", "w_bits", "a_bits", "precision"]
    for (method, *bits, precision), mine in found.groupby(names, sort=False):
        row = {"method": _label(method, *bits), "precision": precision}
        mine = mine.set_index("arch")
        for column, what in (("ratio", "time"), ("peak_ratio", "memory")):
            for arch in (name for name in NETWORKS if name in found["arch"].unique()):
                value = mine[column].get(arch)
                row[f"{arch_name(arch)}, {what}"] = None if value is None else f"{value:.2f}"
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def steps_aims(found: pd.DataFrame) -> str:
    """A row for each aim: how many of the project's methods reach it, and which do not."""
    found = found[~found["method"].isin(["fp", *PEERS])]
    rows = []
    for (precision, arch), aims in AIMS.items():
        mine = found[(found["precision"] == precision) & (found["arch"] == arch)]
        mine = mine.sort_values("ratio")
        for aim in aims if len(mine) else ():
            row = {"precision": PRECISIONS[precision], "network": arch_name(arch)}
            row |= {"aim": f"{aim:.2f}", "methods that reach it": _reached(mine, aim)}
            row |= {"lowest": f"{mine['ratio'].min():.2f}"}
            row |= {"highest": f"{mine['ratio'].max():.2f}"}
            rows.append(row | {"methods that miss it": _missed(mine, aim)})
    return markdown(pd.DataFrame(rows))


def _reached(mine: pd.DataFrame, aim: float) -> str:
    return f"{(mine['ratio'] <= aim).sum()} of {len(mine)}"


def _missed(mine: pd.DataFrame, aim: float) -> str:
    """The methods that take longer than the aim, each with its ratio; `all` if all of them do."""
    missed = mine[mine["ratio"] > aim]
    if len(missed) == len(mine):
        return "all"
    return ", ".join(
        f"{_label(row.method, row.w_bits, row.a_bits)} {row.ratio:.2f}"
        for row in missed.itertuples()
    )


def rates(found: pd.DataFrame) -> str:
    """A row for each network and precision: how fast the processor computes its steps.

    A step counts six operations for each multiply-accumulate of the forward pass: two there, four
    in the backward pass.
    """
    rows = []
    for (precision, arch), mine in found.groupby(["precision", "arch"], sort=False):
        work = 6e-9 * NETWORKS[arch].batch * _macs(arch)
        row = {"precision": PRECISIONS[precision], "network": arch_name(arch)}
        row |= {"GFLOP a step": f"{work:.1f}"}
        times = mine.set_index("method")["ms"]
        for method in ("fp", "direct"):
            row[f"{method_label(method)}, ms"] = f"{times[method]:.0f}"
            row[f"{method_label(method)}, GFLOP/s"] = f"{1000 * work / times[method]:.0f}"
        rows.append(row)
    return markdown(pd.DataFrame(rows))


@cache
def _macs(arch: str) -> int:
    """Multiply-accumulates of an image, forward."""
    network = NETWORKS[arch]
    model = models.build(arch, 100, 3, **network.options)
    image = torch.zeros(1, 3, network.side, network.side)
    return sum(
        row["macs"] for row in convert(model, QuantPolicy(baselines.method("pact"), 2, 2), image)
    )


def step_cost(found: pd.DataFrame) -> str:
    """A row for each method that is no ablation: a step of ResNet-20 in each precision.

    The cells of a method that was not measured are empty.
    """
    found = found[(found["arch"] == "resnet20") & (found["method"] != "fp")]
    names = [name for name, one in baselines.METHODS.items() if one.weight and not one.ablation]
    rows = []
    for name in sorted(names, key=method_order):
        mine = found[found["method"] == name]
        bits = {bits_label(*both) for both in zip(mine["w_bits"], mine["a_bits"], strict=True)}
        row = {"method": f"`{name}`", "bits": ", ".join(sorted(bits))}
        for precision, title in PRECISIONS.items():
            ratio = mine.loc[mine["precision"] == precision, "ratio"]
            row[title] = f"{ratio.iloc[0]:.2f}" if len(ratio) else ""
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def startup(found: pd.DataFrame) -> str:
    """Seconds from the start of a job's process to the end of its first step."""
    rows = []
    for job, seconds in found.groupby("job", sort=False)["seconds"]:
        row = {"job": f"`{job}`", "starts": str(len(seconds))}
        row |= {"median, s": f"{seconds.median():.1f}", "fastest, s": f"{seconds.min():.1f}"}
        row |= {"slowest, s": f"{seconds.max():.1f}", "aim, s": str(START_AIM)}
        rows.append(row)
    return markdown(pd.DataFrame(rows))
