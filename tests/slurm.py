"""A Slurm of one node on this machine's loopback: its own key, ports and files, stopped by process id."""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
PACKAGES = "munge slurmctld slurmd slurm-client"

# The node claims more than this machine has (config_overrides), so that jobs may ask for what real ones need.
SLURM_CONF = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MinJobAge=3600
SchedulerParameters=sched_interval=1,batch_sched_delay=0,defer
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=128000 Gres=gpu:1
PartitionName=cpu Nodes={host} Default=YES State=UP
PartitionName=gpu Nodes={host} State=UP
"""

# This runs Snakemake so that it asks Slurm every second which jobs have ended. By itself the executor waits ten seconds
# longer after every question that finds none, which spares a cluster's controller but only costs time here.
IMPATIENT = """
import sys
from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
RemoteExecutor.next_seconds_between_status_checks = property(lambda self: 1, lambda self, seconds: None)
sys.exit(main())
"""


def missing() -> str:
    """Why no Slurm can be started here, or an empty string."""
    path = search_path()
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    return f"not installed: {', '.join(absent)} (Debian: apt-get install {PACKAGES})" if absent else ""


def search_path() -> str:
    """PATH with the directories in which Debian puts daemons."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


@contextmanager
def loopback_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """A running Slurm with a partition `cpu`, a partition `gpu` and one GPU that is none; yields the environment for
    its commands. All its files are in `folder`, and every daemon it started has ended when the block has."""
    folder.mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    ports = dict(zip(("controller_port", "node_port"), _free_ports(2), strict=True))
    (folder / "slurm.conf").write_text(SLURM_CONF.format(host=host, user=getpass.getuser(), folder=folder, **ports))
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File=/dev/null\n")
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    path = os.pathsep.join([str(_srun_that_finds_its_configuration(folder)), search_path()])
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
    places = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = [f"--{option}={folder}/munge.{ending}" for option, ending in places.items()]
    with ExitStack() as started:
        for command in (
            # --force: other users cannot reach a socket in a private folder, and need not.
            ["munged", "--foreground", "--force", "--num-threads=2", *munge],
            ["slurmctld", "-D", "-c"],
            ["slurmd", "-D", "-N", host],
        ):
            started.enter_context(_daemon(command, environment, folder / f"{command[0]}.out"))
            if command[0] == "munged":
                _wait(lambda: (folder / "munge.socket").exists(), folder)
        _wait(lambda: "idle" in _output(["sinfo", "-h", "-o", "%t"], environment), folder)
        try:
            yield environment
        finally:
            _output(["scancel", "--user", getpass.getuser()], environment)
            _wait(lambda: not _output(["squeue", "-h"], environment), folder)


def jobs(environment: dict[str, str]) -> list[dict[str, str]]:
    """Every job that was submitted, as `scontrol show job` describes it."""
    lines = _output(["scontrol", "--oneliner", "show", "job"], environment).splitlines()
    return [dict(part.split("=", 1) for part in line.split() if "=" in part) for line in lines]


def _srun_that_finds_its_configuration(folder: Path) -> Path:
    """A directory with an `srun` for jobs: the executor takes SLURM_CONF, with other variables of Slurm's, out of a
    job's environment, since a cluster keeps its configuration where Slurm looks first."""
    srun = folder / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)
    return srun.parent


@contextmanager
def _daemon(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    program = shutil.which(command[0], path=search_path())
    with log.open("w") as out:
        process = subprocess.Popen([program, *command[1:]], env=environment, stdout=out, stderr=out)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(ready: Callable[[], bool], folder: Path, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            logs = "\n".join(f"{log.name}:\n{log.read_text()[-1500:]}" for log in sorted(folder.glob("*.out")))
            raise RuntimeError(f"Slurm did not get there within {seconds:g} s\n{logs}")
        time.sleep(0.2)


def _output(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
