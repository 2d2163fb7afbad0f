"""What a run will cost: from a few timed steps at first, then from the epochs that runs leave."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from lowbit_core.datasets.catalog import dataset
from lowbit_core.runtime.files import write_json

START_SECONDS = 10.0  # of one run: data, calibration, the test at the end
EVALUATION = 1 / 3  # cost of evaluating an image, as a share of training on it


def kind(config: dict) -> str:
    """What sets the pace of a run's steps; bits hardly do, and seeds not at all."""
    recipe = config["recipe"]
    options = json.dumps(config["arch_options"], sort_keys=True)
    parts = (config["dataset"], config["arch"], options, config["method"])
    return " ".join([*parts, str(recipe["batch_size"]), recipe["precision"]])


def network(config: dict) -> str:
    """The kinds whose timed and real pace differ by the same factor: one network and recipe."""
    return kind({**config, "method": ""})


def steps_an_epoch(config: dict) -> float:
    """Training steps of an epoch and its evaluation, in units of one training step."""
    recipe = config["recipe"]
    images = recipe["train_images"]
    if images is None:
        images = dataset(config["dataset"]).train_images - recipe["val_images"]
    batch = recipe["batch_size"]
    return images // batch + EVALUATION * recipe["val_images"] / batch


def epochs_done(folder: Path) -> int:
    """Epochs that the run in `folder` has recorded; 0 where there is none."""
    return len(_epoch_seconds(folder))


def _epoch_seconds(folder: Path) -> list[float]:
    path = folder / "timings.csv"
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    rows = csv.DictReader(line for line in lines if line.endswith("\n"))
    return [float(row["seconds"]) for row in rows]


def _read(path: Path) -> dict | None:
    """A JSON file that a run may be writing: None where it is not there."""
    return json.loads(path.read_text()) if path.exists() else None


@dataclass
class Costs:
    """Seconds a step by kind of run: `timed` uncompiled in a few steps, `real` from whole epochs."""

    timed: dict[str, float] = field(default_factory=dict)
    real: dict[str, float] = field(default_factory=dict)
    networks: dict[str, str] = field(default_factory=dict)
    """The network of each kind."""
    hardware: str | None = None
    """Runs that finished on other hardware are left out; None takes all."""
    stored: Path | None = None

    def look(self, runs: Path) -> None:
        """Learn the real pace from the runs in `runs`, also unfinished ones."""
        found: dict[str, list[float]] = {}
        for path in sorted(runs.glob("*/config.json")):
            seconds = _epoch_seconds(path.parent)
            final = _read(path.parent / "final.json")
            if not seconds or (self.hardware and final and final["hardware"] != self.hardware):
                continue
            config = _read(path)
            steps = steps_an_epoch(config) - EVALUATION * (
                config["recipe"]["val_images"] / config["recipe"]["batch_size"]
            )
            found.setdefault(kind(config), []).append(median(seconds[1:] or seconds) / steps)
            self.networks[kind(config)] = network(config)
        self.real |= {name: median(paces) for name, paces in found.items()}

    def remember(self, path: Path) -> None:
        """Take in what was timed on this hardware before, and stored at `path`."""
        self.stored = path
        for name, (seconds, of) in (_read(path) or {}).get(str(self.hardware), {}).items():
            self.timed[name], self.networks[name] = seconds, of

    def store(self) -> None:
        """Keep what was timed where `remember` looked; other hardware's times stay."""
        own = {name: (seconds, self.networks[name]) for name, seconds in self.timed.items()}
        if self.stored is not None:
            write_json(self.stored, (_read(self.stored) or {}) | {str(self.hardware): own})

    def add_timed(self, config: dict, seconds_a_step: float) -> None:
        self.timed[kind(config)] = seconds_a_step
        self.networks[kind(config)] = network(config)

    def step(self, config: dict) -> float | None:
        """Predicted seconds of one training step; None where nothing is known."""
        name = kind(config)
        if name in self.real:
            return self.real[name]
        if name in self.timed:
            return self.timed[name] * self._factor(network(config))
        return None

    def _factor(self, of: str) -> float:
        """Real over timed pace of a network's other kinds; 1 (an upper bound) before any is known."""
        ratios = [
            self.real[name] / self.timed[name]
            for name in self.real.keys() & self.timed.keys()
            if self.networks[name] == of
        ]
        return median(ratios) if ratios else 1.0

    def seconds(self, config: dict, done: int = 0) -> float | None:
        """Predicted seconds of what is left of a run after `done` epochs; None where unknown."""
        step = self.step(config)
        if step is None:
            return None
        return START_SECONDS + (config["recipe"]["epochs"] - done) * steps_an_epoch(config) * step
