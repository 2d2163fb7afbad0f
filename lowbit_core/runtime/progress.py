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
    with contextlib.suppress(BrokenPipeError):
        if speaks():
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
        self.first_epoch = self.first_epoch or epoch
        now = time.monotonic()
        if now - self.last >= (_LIVE_EVERY if self.live else _PLAIN_EVERY):
            self.last = now
            done = epoch - self.first_epoch + count / self.images
            text = (
                f"{100 * count / self.images:.0f} %, {done * self.images / (now - self.began):.0f}"
            )
            self._report(epoch, done, text, end="" if self.live else "\n")

    def epoch(self, row: dict, images_per_s: float) -> None:
        """Report that an epoch is done; `row` holds its metrics."""
        done = row["epoch"] - (self.first_epoch or row["epoch"]) + 1
        text = f"loss {row['train_loss']:.3f}, val top-1 {row['val_top1']:.2f} %"
        self._report(row["epoch"], done, f"{text}, {images_per_s:.0f}")

    def _report(self, epoch: int, done: float, text: str, end: str = "\n") -> None:
        """Say `text` and when the run will end, after `done` epochs since this process began."""
        left = self.epochs - (self.first_epoch or epoch) + 1 - done
        seconds = int(left * (time.monotonic() - self.began) / done)
        begin = "\r\033[K" if self.live else ""
        text = f"{self.name}: epoch {epoch}/{self.epochs}, {text} images/s"
        say(f"{begin}{text}, ETA {timedelta(seconds=seconds)}", end)
