"""Time several callables in turns, so that other work of the machine slows all of them alike."""

import statistics
import sys
import time
from collections.abc import Callable

import torch


def timed(calls: dict[str, Callable[[], object]], rounds: int, inner: int = 1) -> dict[str, list]:
    """{name: seconds of one call in each round}; `inner` calls are timed together.

    Each callable is called twice before: that compiles kernels and fills caches.
    """
    for call in calls.values():
        call(), call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            _finish()
            began = time.perf_counter()
            for _ in range(inner):
                call()
            _finish()
            seconds[name].append((time.perf_counter() - began) / inner)
    return seconds


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratios(seconds: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """For each name: median milliseconds, and quartiles of the ratio to `base` in each round."""
    rows = {}
    for name, times in seconds.items():
        each = [a / b for a, b in zip(times, seconds[base], strict=True)]
        if len(each) == 1:
            each *= 2  # quartiles need two values
        # The method "inclusive" gives no quartile beyond what was measured.
        low, middle, high = statistics.quantiles(each, n=4, method="inclusive")
        rows[name] = {
            "ms": 1000 * statistics.median(times),
            "base": base,
            "ratio": middle,
            "ratio_q1": low,
            "ratio_q3": high,
        }
    return rows


def say(text: str) -> None:
    """Print a message beside the tables."""
    print(text, file=sys.stderr, flush=True)
