"""Slots on GPUs: spread over them, as many as allowed, free again when a process ends."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from workflow import gpu_slots
from workflow.gpu_slots import take_slot

HOLD = """
import sys, time
from pathlib import Path
from workflow.gpu_slots import take_slot
slot = take_slot(["a", "b"], 2, Path(sys.argv[1]))
print(slot.device, flush=True)
time.sleep(600)
"""


def test_processes_spread_and_a_dead_one_frees_its_slot(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    root = Path(__file__).parents[2]
    held = []
    try:
        for _ in range(3):
            process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
            held.append((process, int(process.stdout.readline())))
        assert [device for _, device in held] == [0, 1, 0]
        held[1][0].kill()
        held[1][0].wait()
        assert take_slot(["a", "b"], 2, tmp_path).device == 1
    finally:
        for process, _ in held:
            process.kill()
            process.wait()


def test_a_full_machine_makes_the_next_wait(tmp_path, monkeypatch, capsys):
    slept = threading.Event()

    def sleep(_seconds):
        slept.set()
        time.sleep(0.01)

    monkeypatch.setattr(gpu_slots, "time", SimpleNamespace(sleep=sleep))
    first = take_slot(["a"], 1, tmp_path)
    got = []
    waiting = threading.Thread(target=lambda: got.append(take_slot(["a"], 1, tmp_path)))
    waiting.start()
    assert slept.wait(60) and got == []
    first.lock.close()
    waiting.join(60)
    assert [slot.device for slot in got] == [0]
    assert capsys.readouterr().err == "waiting for a GPU: 1 processes use each\n"
