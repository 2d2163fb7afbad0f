"""Several callables timed in turns, so that whatever the machine does meets all of them alike."""

import statistics
import sys
import time
from collections.abc import Callable

import torch


def timed(calls: dict[str, Callable[[], object]], rounds: int, inner: int = 1) -> dict[str, list]:
    """Seconds of one call, for each callable and round; `inner` calls are timed together.

    Two calls of each come first: they compile kernels and fill caches.
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
    """For each name: median `ms`, and the quartiles of its ratio to `base`, round by round."""
    rows = {}
    for name, own in seconds.items():
        each = [a / b for a, b in zip(own, seconds[base], strict=True)]
        # "inclusive": few rounds must not give quartiles beyond what was measured.
        several = len(each) > 1
        low, middle, high = (
            statistics.quantiles(each, n=4, method="inclusive") if several else each * 3
        )
        rows[name] = {
            "ms": 1000 * statistics.median(own),
            "base": base,
            "ratio": middle,
            "ratio_q1": low,
            "ratio_q3": high,
        }
    return rows


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
