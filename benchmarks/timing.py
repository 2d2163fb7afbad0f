"""Time several callables in turns, so that other work of the machine slows all of them alike."""

import time
from collections.abc import Callable

import numpy as np
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def now() -> float:
    """Seconds on a clock, once the GPU has done all that it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(
    calls: dict[str, Callable[[], object]],
    rounds: int,
    inner: int = 1,
    clock: Callable[[], float] = now,
    warm: int = 0,
    rest: float = 0.0,
) -> dict[str, list[float]]:
    """{name: seconds of one call in each round}; `inner` calls are timed together.

    Each callable is called twice before: that compiles kernels and fills caches. warm: calls of a
    turn that are not timed, so that it does not depend on what the one before left in the caches.
    rest: seconds before each turn, in which the threads of the one before stop waiting for work.
    """
    for call in calls.values():
        call(), call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(rest)
            for _ in range(warm):
                call()
            began = clock()
            for _ in range(inner):
                call()
            seconds[name].append((clock() - began) / inner)
    return seconds


def ratios(seconds: dict[str, list[float]], base: str) -> dict[str, dict[str, object]]:
    """For each name: median milliseconds, and quartiles of the ratio to `base` in each round."""
    rows: dict[str, dict[str, object]] = {}
    for name, times in seconds.items():
        quartiles = np.percentile(np.divide(times, seconds[base]), [50, 25, 75])
        rows[name] = {"ms": 1000 * float(np.median(times)), "base": base}
        rows[name] |= zip(("ratio", "ratio_q1", "ratio_q3"), map(float, quartiles), strict=True)
    return rows
