"""After a kill: Snakemake's lock is removed once nothing that could hold it is alive."""

import os
from pathlib import Path

import psutil

from papertrial.engine.errors import PapertrialError

LOCKS = Path(".snakemake/locks")


def unlock() -> None:
    """Remove the lock that a killed Snakemake left in this folder.

    Jobs that outlived it are waited for: what they finish counts.

    Raises:
        PapertrialError: a Snakemake is at work here.
    """
    if not LOCKS.is_dir() or not any(LOCKS.iterdir()):
        return
    here = Path.cwd()
    snakemakes = [p for p in _running(here) if "snakemake" in _command(p)]
    if snakemakes:
        raise PapertrialError(f"a snakemake is at work in {here} (process {snakemakes[0].pid}); wait for it or stop it")
    orphans = [p for p in _running(here) if " papertrial " in _command(p)]
    if orphans:
        print(f"waiting for {len(orphans)} jobs of a killed run: " + ", ".join(str(p.pid) for p in orphans), flush=True)
        psutil.wait_procs(orphans)
    for lock in LOCKS.iterdir():
        lock.unlink()
    print("removed the lock of a killed run")


def _running(here: Path) -> list[psutil.Process]:
    """Python processes whose folder is this one, other than ourselves and our ancestors."""
    ours = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid not in ours and "python" in process.name() and Path(process.cwd()) == here:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # gone, or somebody else's
    return found


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
