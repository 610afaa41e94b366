"""What a piece of work took: wall and CPU seconds, and the peak memory of this process."""

import os
import platform
import resource
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

LIBRARIES = ("numpy", "scipy", "torch", "scikit-learn", "pyarrow", "safetensors")


class Meter:
    """Started when made."""

    def __init__(self) -> None:
        self.start = datetime.now(UTC).isoformat(timespec="seconds")
        self._wall, self._cpu = time.perf_counter(), cpu_seconds()

    def read(self) -> dict[str, float]:
        """Seconds since the start; the peak is the process's so far."""
        return {"wall_s": time.perf_counter() - self._wall, "cpu_s": cpu_seconds() - self._cpu}


def cpu_seconds() -> float:
    """User and system time of this process and its finished children."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes, on macOS bytes
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def gpu_memory(device: str) -> dict[str, float]:
    """{"gpu_peak_mb"}: the most that torch held on the GPU; empty elsewhere."""
    if device != "cuda":
        return {}
    import torch

    return {"gpu_peak_mb": torch.cuda.max_memory_reserved() / 2**20}


def git_commit() -> str:
    """HEAD, marked where tracked files differ from it; 'unknown' outside a checkout."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "workflow", "config"], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+changes" if dirty else head


def surroundings() -> dict[str, Any]:
    """Where a job ran and with what."""

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {
        "commit": git_commit(),
        "python": platform.python_version(),
        "libraries": {name: installed(name) for name in LIBRARIES},
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or None,
    }
