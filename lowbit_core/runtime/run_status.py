"""Is this run done? The one answer that training, the queue and the tables share."""

from enum import Enum
from pathlib import Path

from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.run_folder import RunFolder


class RunStatus(Enum):
    """What a run folder holds of one run."""

    ABSENT = "absent"  # no final record
    OTHER = "other"  # the final record of another run: another configuration, or other code
    DAMAGED = "damaged"  # a final record whose files are missing, or are not what was written
    DONE = "done"  # the whole record of exactly this run


def run_status(folder: Path, run_key: str, *, weights: bool) -> tuple[RunStatus, str]:
    """Status of the run with key `run_key` in `folder`, and for DAMAGED the damage in one sentence.

    `weights`: whether the trained network must be there too, as for a start that others load.
    """
    if not (folder / "final.json").exists():
        return RunStatus.ABSENT, ""
    try:
        final = RunFolder(folder).finished(weights)
    except (InputError, OSError) as error:
        return RunStatus.DAMAGED, str(error)
    return (RunStatus.DONE if final.get("run_key") == run_key else RunStatus.OTHER), ""


def loaded_runs(config: dict) -> list[str]:
    """The ids of the runs whose weights a run loads: its start, its predecessor, its teachers."""
    named = [config["pretrained"], config.get("predecessor"), *config.get("teachers", ())]
    return list(dict.fromkeys(name for name in named if name))
