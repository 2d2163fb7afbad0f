"""A sweep through a real SLURM with one node on this machine, without accounting: docs/cluster.md.

Needs Debian's packages slurm-wlm and munge, and root. The configuration must lie in /etc/slurm,
because the jobs' environment does not name another place.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from psutil import process_iter
from sweeps import BIN, LONGEST, SAME, Project, assert_same_runs, signal_group

CONFIGURATION = Path("/etc/slurm/slurm.conf")
OURS = "# Written by tests/fault/test_cluster.py of lowbit-bench, which removes it at its end."
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
# Two jobs fit at a time, whatever the machine has: `config_overrides` believes this file.
TEMPLATE = """{ours}
ClusterName=lowbit
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=12500
PartitionName=main Nodes={host} Default=YES
PartitionName=gpu Nodes={host}
"""


def why_not() -> str:
    """Why no SLURM can be started here; empty if one can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found: install slurm-wlm and munge"
    if os.geteuid() != 0:
        return "only root can start SLURM's daemons"
    if CONFIGURATION.exists() and not CONFIGURATION.read_text().startswith(OURS):
        return f"{CONFIGURATION} belongs to another cluster"
    return ""


pytestmark = [
    pytest.mark.soak,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"),
]


class Cluster:
    """munged, slurmctld and slurmd on 127.0.0.1, with their files in one folder."""

    def __init__(self, folder: Path):
        self.folder, self.host = folder, socket.gethostname().partition(".")[0]
        self.daemons: list[subprocess.Popen] = []

    def start(self) -> None:
        folder = self.folder
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        CONFIGURATION.write_text(
            TEMPLATE.format(ours=OURS, host=self.host, folder=folder, ports=free_ports(2))
        )
        self._daemon(
            "munged", "--foreground", f"--socket={folder}/munge.socket",
            f"--key-file={folder}/munge.key", f"--pid-file={folder}/munged.pid",
            f"--seed-file={folder}/munge.seed",
        )  # fmt: skip
        self.wait(lambda: (folder / "munge.socket").exists(), "munged")
        self._daemon("slurmctld", "-D")
        self._daemon("slurmd", "-D")
        self.wait(lambda: self.node_state() == "idle", "an idle node")

    def stop(self) -> None:
        """End the jobs, then the daemons, and remove the configuration."""
        try:
            if len(self.daemons) == 3:
                for job in self.jobs():
                    run("scancel", job)
                self.wait(lambda: not self.jobs(), "the end of all jobs")
        finally:
            for daemon in reversed(self.daemons):
                daemon.terminate()
                try:
                    daemon.wait(30)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait(30)
            CONFIGURATION.unlink(missing_ok=True)

    def jobs(self) -> dict[str, str]:
        """State of each job that has not ended, by its number."""
        return dict(line.split() for line in run("squeue", "-h", "-o", "%A %T").splitlines())

    def state(self, job: str) -> str:
        """The job's state, also after it has ended."""
        return run("squeue", "-h", "-j", job, "-t", "all", "-o", "%T").strip()

    def node_state(self) -> str:
        return run("sinfo", "-h", "-N", "-p", "main", "-o", "%T").strip()

    def set_node(self, **settings: str) -> None:
        words = [f"{key}={value}" for key, value in settings.items()]
        run("scontrol", "update", f"nodename={self.host}", *words)

    def wait_for_jobs(self, states: list[str], sweep: subprocess.Popen, project: Project) -> None:
        """Wait until the jobs that have not ended are in just these states."""

        def reached() -> bool:
            assert sweep.poll() is None, project.said()
            return sorted(self.jobs().values()) == states

        self.wait(reached, f"jobs that are {states}")

    def _daemon(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.log").open("w") as log:
            self.daemons.append(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
                )
            )

    def wait(self, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + LONGEST
        while not done():
            assert time.monotonic() < end, f"no {what} in time: {self._logs()}"
            for daemon in self.daemons:
                assert daemon.poll() is None, f"{daemon.args[0]} ended: {self._logs()}"
            time.sleep(0.5)

    def _logs(self) -> str:
        return "\n".join(log.read_text()[-2000:] for log in self.folder.glob("*.log"))


def run(*command: str) -> str:
    """What the command says; an empty string if it fails, as all do before slurmctld listens."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout if done.returncode == 0 else ""


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that name the folder: what a job left running."""
    lines = [" ".join(process.info["cmdline"] or ()) for process in process_iter(["cmdline"])]
    return [line for line in lines if str(folder) in line]


@pytest.fixture
def cluster():
    # Not in pytest's folder: munged wants a socket that all users can reach.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        Path(folder).chmod(0o755)
        slurm = Cluster(Path(folder))
        try:
            slurm.start()
            yield slurm
        finally:
            slurm.stop()


def sweep_through_slurm(project: Project) -> subprocess.Popen:
    """README's command, with the status asked every few seconds instead of every 20."""
    return project.start(
        str(BIN / "snakemake"), "--workflow-profile", "profiles/slurm",
        "--slurm-init-seconds-before-status-checks", "3",
        "--config", "suite=tiny", f"data={project.data}",
        "--", *(f"results/tiny/{name}" for name in SAME),
    )  # fmt: skip


@pytest.mark.timeout(1500)
def test_a_drained_node_and_a_cancelled_job_are_survived(cluster, reference, project):
    """The sweep ends by itself, in the bytes of a sweep on this machine alone."""
    then = len(reference.jobs()) - 1  # jobs that follow the pretraining
    project.hold()
    sweep = sweep_through_slurm(project)
    try:
        project.wait_until_held(1, sweep)  # the pretraining, which a drained node still finishes
        cluster.set_node(state="drain", reason="test")
        project.release()
        cluster.wait_for_jobs(["PENDING"] * then, sweep, project)
        cluster.wait(lambda: cluster.node_state() == "drained", "drained node")
        (project.folder / "hold").mkdir()
        cluster.set_node(state="resume")
        project.wait_until_held(min(2, then), sweep)
        cancelled = next(job for job, state in cluster.jobs().items() if state == "RUNNING")
        run("scancel", cancelled)
        cluster.wait(lambda: cluster.state(cancelled) == "CANCELLED", "cancelled job")
        project.release()
        assert sweep.wait(LONGEST) == 0, project.said()
    finally:
        if sweep.poll() is None:
            signal_group(sweep, signal.SIGKILL)
    cluster.wait(lambda: not processes_of(project.folder), "end of all processes")
    slurm_log = next(project.folder.glob(f".snakemake/slurm_logs/**/{cancelled}.log"))
    log = project.results / "logs" / f"{slurm_log.parent.name}.log"
    assert re.findall(r"epoch \d", log.read_text())[0] == "epoch 2", "it did not go on"
    assert project.tables() == reference.tables()
    assert_same_runs(project.runs, reference.runs)
