"""Messages and progress on stderr: on a terminal one line that is rewritten, else plain lines."""

import contextlib
import os
import sys
import time
from datetime import timedelta

_LIVE_EVERY = 0.2  # seconds between updates of the live line
_PLAIN_EVERY = 30.0  # seconds between plain lines within an epoch


def speaks() -> bool:
    """False in the processes that torchrun started, except for the first of them."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0"


def say(text: str, end: str = "\n") -> None:
    """Write `text` to stderr. Training goes on if nobody reads it (a closed terminal)."""
    if not speaks():
        return
    with contextlib.suppress(BrokenPipeError):
        print(text, end=end, file=sys.stderr, flush=True)


class Progress:
    """Reports the epochs of one run on stderr."""

    def __init__(self, name: str, epochs: int, images: int) -> None:
        self.name, self.epochs, self.images = name, epochs, images
        self.live = sys.stderr.isatty()
        self.began = self.last = time.monotonic()
        self.first_epoch: int | None = None

    def step(self, epoch: int, count: int) -> None:
        """Report that `count` images of `epoch` are done."""
        if self.first_epoch is None:
            self.first_epoch = epoch
        now = time.monotonic()
        if now - self.last < (_LIVE_EVERY if self.live else _PLAIN_EVERY):
            return
        self.last = now
        done = epoch - self.first_epoch + count / self.images
        rate = done * self.images / (now - self.began)
        self._report(epoch, done, f"{100 * count / self.images:.0f} %", rate, live=self.live)

    def epoch(self, row: dict, images_per_s: float) -> None:
        """Report that an epoch is done; `row` holds its metrics."""
        done = row["epoch"] - (self.first_epoch or row["epoch"]) + 1
        metrics = f"loss {row['train_loss']:.3f}, val top-1 {row['val_top1']:.2f} %"
        self._report(row["epoch"], done, metrics, images_per_s)

    def _report(
        self, epoch: int, done: float, what: str, images_per_s: float, live: bool = False
    ) -> None:
        """`done`: epochs since this process began. `live`: the next line may overwrite this one."""
        whole = self.epochs - (self.first_epoch or epoch) + 1
        seconds = (whole - done) * (time.monotonic() - self.began) / done
        say(
            ("\r\033[K" if self.live else "")
            + f"{self.name}: epoch {epoch}/{self.epochs}, {what}, {images_per_s:.0f} images/s, "
            f"ETA {timedelta(seconds=int(seconds))}",
            end="" if live else "\n",
        )
