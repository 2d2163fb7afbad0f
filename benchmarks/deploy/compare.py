"""Time of exported networks, and the ratios of their peers' times to it.

One thread is timed by the processor time of this process, so that what else the machine does hardly
counts; on an idle machine it equals the time on the clock. Two threads are timed by the clock.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks import avx2
from benchmarks.deploy import peers
from benchmarks.deploy.peers import PEERS, Call
from benchmarks.deploy.subjects import Exported, Subject, convolution, network
from benchmarks.timing import now, timed
from deploy.engine.build import library
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.progress import say

METHODS = ("pact", "lq_nets")  # uniform levels; levels on a basis
BITS = ((1, 1), (1, 2), (2, 2), (3, 3), (4, 4))
NETWORKS = (
    network("resnet20", 32, calls=5, width=16),
    network("resnet18", 224, width=64, stem="imagenet"),
    network("mobilenetv2", 224, width=1.0),
)
LAYERS = (
    *(convolution(channels, side, calls=10) for channels, side in ((16, 32), (32, 16), (64, 8))),
    *(convolution(c, side, calls=2) for c, side in ((64, 56), (128, 28), (256, 14), (512, 7))),
)
# Idle threads wait awake for some milliseconds before they sleep, and are slow to begin again.
REST, CALLS_AFTER_REST = 0.05, 5  # seconds, calls
QUICK = (network("resnet20", 8, width=8), convolution(8, 8))


@dataclass(frozen=True)
class Setting:
    """What all contenders of one comparison have in common, and how often they take turns."""

    batch: int
    threads: int
    bits: tuple[tuple[int, int], ...] = BITS
    rounds: int = 15


SETTINGS = (Setting(1, 1), Setting(1, 2), Setting(32, 1, rounds=3))
QUICK_SETTINGS = (Setting(1, 1, ((2, 2),), rounds=1), Setting(2, 2, ((2, 2),), rounds=1))


@dataclass(frozen=True)
class Contender:
    """What takes part in a comparison, and what its row says of it."""

    call: Call
    about: dict


def measure(quick: bool = False) -> Iterator[dict]:
    """Rows: network, w_bits, a_bits, method, kernel, batch, threads, ms, x_<peer>, file_bytes.

    ms is the median. x_<peer> is the median of the peer's time over the row's own, so more than 1
    where the row is faster. quick: a tiny network and layer at W2A2, in one round.
    """
    try:
        library()
    except InputError as error:
        say(f"exported networks are left out: {error}")
        return
    for subject in QUICK if quick else (*NETWORKS, *LAYERS):
        settings = QUICK_SETTINGS if quick else SETTINGS
        settings = settings[:1] if subject.layer else settings
        with tempfile.TemporaryDirectory() as folder:
            yield from compare(subject, settings, Path(folder))


def compare(subject: Subject, settings: tuple[Setting, ...], folder: Path) -> list[dict]:
    """The rows of one network or layer; `folder` takes its files."""
    all_bits = dict.fromkeys(bits for setting in settings for bits in setting.bits)
    with _torch_threads(1):  # quantizing calls many small operations
        files = peers.write_files(subject, folder)
        exported = [
            subject.exported(method, *bits, folder) for method in METHODS for bits in all_bits
        ]
    rows = []
    for setting in settings:
        say(f"{subject.name}, batch {setting.batch}, threads {setting.threads}")
        with _torch_threads(setting.threads):
            contenders = _peers(files, subject.images(setting.batch), setting)
            for one in exported:
                if (one.w_bits, one.a_bits) in setting.bits:
                    contenders[one.name] = _lowbit(subject, one, setting)
            rows += _rows(subject, setting, contenders)
    return rows


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _peers(files: peers.Files, images: np.ndarray, setting: Setting) -> dict[str, Contender]:
    contenders = {}
    for name, peer in PEERS.items():
        if avx2.held() and peer.label == "onnxruntime":
            continue  # it has no switch that leaves AVX-512 out
        if peers.found(*peer.needs):
            path = peer.path(files)
            about = {"w_bits": peer.bits, "a_bits": peer.bits, "method": peer.method}
            about |= {"kernel": peer.label, "file_bytes": path and path.stat().st_size}
            contenders[name] = Contender(peer.start(files, images, setting.threads), about)
    return contenders


def _lowbit(subject: Subject, exported: Exported, setting: Setting) -> Contender:
    network, images = exported.load(setting.threads), subject.images(setting.batch)
    if subject.layer:  # as for torch, the faster memory layout: the channels last
        images = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    about = {"w_bits": exported.w_bits, "a_bits": exported.a_bits, "method": exported.method}
    about |= {"kernel": network.counting_kernels(), "file_bytes": exported.file_bytes}
    return Contender(lambda: network.scores(images), about)


def _rows(subject: Subject, setting: Setting, contenders: dict[str, Contender]) -> list[dict]:
    calls = {name: contender.call for name, contender in contenders.items()}
    clock, rest, inner = time.process_time, 0.0, subject.calls
    if setting.threads > 1:
        clock, rest, inner = now, REST, max(inner, CALLS_AFTER_REST)
    seconds = timed(calls, setting.rounds, inner, clock, warm=1, rest=rest)
    rows = []
    for name, contender in contenders.items():
        row = {"network": subject.name, **contender.about}
        row |= {"batch": setting.batch, "threads": setting.threads}
        row["ms"] = 1000 * float(np.median(seconds[name]))
        for peer in PEERS:
            row[f"x_{peer}"] = None
            if peer in seconds:
                row[f"x_{peer}"] = float(np.median(np.divide(seconds[peer], seconds[name])))
        # The last column. With empty text instead of None, pandas keeps whole numbers.
        row["file_bytes"] = row.pop("file_bytes") or ""
        rows.append(row)
    return rows
