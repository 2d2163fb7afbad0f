"""Places on GPUs: spread over devices, as many as allowed, given back when a process ends."""

import subprocess
import sys
import threading
from pathlib import Path

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


def test_processes_spread_and_a_dead_one_gives_its_place_back(tmp_path):
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
    monkeypatch.setattr(gpu_slots, "LOOK_EVERY", 0.01)
    first = take_slot(["a"], 1, tmp_path)
    got = []
    waiting = threading.Thread(target=lambda: got.append(take_slot(["a"], 1, tmp_path)))
    waiting.start()
    said = ""
    while not said:  # the other thread says that it waits
        said += capsys.readouterr().err
    assert got == []
    first.lock.close()
    waiting.join()
    assert [slot.device for slot in got] == [0]
    assert said + capsys.readouterr().err == "waiting for a GPU: 1 processes use each\n"
