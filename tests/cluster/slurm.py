"""A Slurm of one node on this machine, for tests: real daemons on loopback, two fake GPUs, no systemd, no database.

    python tests/cluster/slurm.py start     # as root on Debian or Ubuntu; installs slurm-wlm and munge where missing
    python tests/cluster/slurm.py stop      # ends what it started, by process id, and removes what it wrote

Slurm's configuration has one place, /etc/slurm: the executor plugin takes SLURM_CONF out of a job's environment. So
nothing is started where somebody else's configuration lies there.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CONF = Path("/etc/slurm/slurm.conf")
MARK = "# Papertrial's test cluster; removed when it stops. Base folder: "
DAEMONS = ("slurmd", "slurmctld", "munged")  # in the order they are stopped
GPUS = 2

SLURM_CONF = """\
{mark}{base}
ClusterName=papertrial
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/munge/munge.socket
CryptoType=crypto/munge
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,batch_sched_delay=0,defer_batch
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={base}/jobs.txt
GresTypes=gpu
MinJobAge=3600
KillWait=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class Impossible(Exception):
    """This machine can't have a test cluster; the text says why."""


def start() -> Path:
    """Install what is missing, start the three daemons, and wait until the node is idle.

    Returns:
        The base folder, with the logs and jobs.txt: one line for every job that ended.

    Raises:
        Impossible: not root, no apt-get, a foreign configuration, or a daemon that doesn't come up.
    """
    if os.geteuid() != 0:
        raise Impossible("a Slurm of its own needs root")
    if _base():
        stop()  # left behind by a run that was killed
    if CONF.exists() or CONF.with_name("gres.conf").exists():
        raise Impossible(f"{CONF.parent} has a configuration that isn't this script's; it is left alone")
    _install()
    base = Path(tempfile.mkdtemp(prefix="papertrial-slurm-"))
    base.chmod(0o755)
    for folder in ("state", "spool", "munge"):
        (base / folder).mkdir(mode=0o755)
    shutil.chown(base / "munge", "munge", "munge")
    for i in range(GPUS):
        os.mknod(base / f"gpu{i}", 0o666 | 0o020000, os.makedev(1, 3))  # a character device, as a GPU's is: /dev/null's
    CONF.parent.mkdir(exist_ok=True)
    host = socket.gethostname().split(".")[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 512
    cpus = max(2, os.cpu_count() or 1)  # one job that waits must not keep the others out
    filled = {"mark": MARK, "base": base, "host": host, "cpus": cpus, "memory": memory, "gpus": GPUS}
    CONF.write_text(SLURM_CONF.format(**filled))
    CONF.with_name("gres.conf").write_text(f"{MARK}{base}\nNodeName={host} Name=gpu File={base}/gpu[0-{GPUS - 1}]\n")
    munge = base / "munge"
    files = {"socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "munged.seed"}
    options = [f"--{option}={munge / file}" for option, file in files.items()]
    as_munge = ("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups")
    try:
        _run(*as_munge, "munged", *options)
        _run("slurmctld")
        _wait("slurmctld answers", lambda: "UP" in _said("scontrol", "ping"))
        _run("slurmd")
        _wait("the node is idle", lambda: _said("sinfo", "-h", "-o", "%T").strip() == "idle")
    except BaseException:
        stop()
        raise
    return base


def stop() -> None:
    """End every job and daemon of the cluster that ``start`` made, and remove its files."""
    base = _base()
    if base is None:
        return
    if _pid(base, "slurmctld"):
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(["scancel", "--me"], capture_output=True, timeout=20)
        with suppress(Impossible):
            _wait("the jobs ended", lambda: not _said("squeue", "-h", "-t", "running,completing"), seconds=20)
    for daemon in DAEMONS:
        _end(_pid(base, daemon))
    for file in (CONF, CONF.with_name("gres.conf")):
        if file.exists() and file.read_text().startswith(MARK):
            file.unlink()
    shutil.rmtree(base, ignore_errors=True)


@contextmanager
def running() -> Iterator[Path]:
    base = start()
    try:
        yield base
    finally:
        stop()


def ended(base: Path) -> list[dict[str, str]]:
    """What Slurm wrote down of every job that ended: JobId, JobState, TimeLimit, Tres and more."""
    file = base / "jobs.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    return [dict(pair.split("=", 1) for pair in line.split() if "=" in pair) for line in lines]


def _base() -> Path | None:
    """The base folder of a cluster of ours that is, or was, configured."""
    if CONF.exists() and CONF.read_text().startswith(MARK):
        return Path(CONF.read_text().splitlines()[0].removeprefix(MARK))
    return None


def _install() -> None:
    if all(map(shutil.which, (*DAEMONS, "sbatch", "setpriv"))) and Path("/etc/munge/munge.key").exists():
        return
    if not shutil.which("apt-get"):
        raise Impossible("slurm-wlm and munge are missing, and there is no apt-get to install them with")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "slurm-wlm", "munge"]):
        done = subprocess.run(["apt-get", *command], env=env, capture_output=True, text=True)
        if done.returncode:
            raise Impossible(f"apt-get {command[0]} failed: {done.stderr.strip()[-300:]}")


def _pid(base: Path, daemon: str) -> int | None:
    """A daemon's process id, if that process is still that daemon."""
    file = base / ("munge" if daemon == "munged" else "") / f"{daemon}.pid"
    try:
        pid = int(file.read_text())
        return pid if Path(f"/proc/{pid}/comm").read_text().strip() == daemon else None
    except (OSError, ValueError):
        return None


def _end(pid: int | None) -> None:
    for sign, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        if pid is None:
            return
        with suppress(ProcessLookupError):
            os.kill(pid, sign)
        with suppress(Impossible):
            _wait("", lambda: not _alive(pid), seconds)
            return


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise Impossible(f"{command[0]} doesn't start: {done.stderr.strip()}")


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=15).stdout
    except subprocess.TimeoutExpired:
        return ""


def _wait(what: str, there: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not there():
        if time.monotonic() > until:
            raise Impossible(f"waited {seconds:.0f} s in vain until {what}")
        time.sleep(0.1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("start", "stop"))
    try:
        print(start() if parser.parse_args().command == "start" else stop() or "stopped")
    except Impossible as error:
        sys.exit(str(error))
