"""Joules that a job used, where the machine counts them; nothing is estimated from a nameplate.

Processors: the kernel's powercap counters (Intel's RAPL, AMD's through the same files), usually readable by root
only. They count whole packages, so a job's part is its share of the machine's busy CPU time meanwhile. GPUs: NVML's
energy counter of the device that the job has to itself (``pip install papertrial[energy]``).
"""

import os
from pathlib import Path

from papertrial.engine.cost import cpu_seconds

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Started when made.

    Args:
        powercap: the kernel's tree of counters.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._before = {p: _number(p / "energy_uj") for p in packages(powercap)}
        if self._before:
            self._cpu, self._busy = cpu_seconds(), busy_seconds()
        self._gpu_before = gpu_joules()

    def read(self, device: str) -> dict[str, float]:
        """{"energy_j"} since the start; empty where a part that the job used isn't counted."""
        processor = self._processor()
        if processor is None:
            return {}
        if device == "cpu":
            return {"energy_j": processor}
        now = gpu_joules() if device == "cuda" else None
        if now is None or self._gpu_before is None:
            return {}
        return {"energy_j": processor + now - self._gpu_before, "gpu_energy_j": now - self._gpu_before}

    def _processor(self) -> float | None:
        if not self._before:
            return None
        joules = 0.0
        for package, before in self._before.items():
            now = _number(package / "energy_uj")
            if before is None or now is None:
                return None
            if now < before:  # the counter began anew
                now += _number(package / "max_energy_range_uj") or 0
            joules += (now - before) / 1e6
        own, busy = cpu_seconds() - self._cpu, busy_seconds() - self._busy
        return joules * min(1.0, own / busy) if busy > 0 else joules


def packages(powercap: Path) -> list[Path]:
    """The counters of whole processor packages; their parts (core, dram) are counted in them or not at all."""
    found = [p for p in powercap.glob("*:*") if p.name.count(":") == 1 and "mmio" not in p.name]
    return [p for p in found if _text(p / "name").startswith("package") and _number(p / "energy_uj") is not None]


def busy_seconds() -> float:
    """CPU seconds of the whole machine that weren't idle."""
    import psutil

    t = psutil.cpu_times()
    return t.user + t.nice + t.system + sum(getattr(t, name, 0.0) for name in ("irq", "softirq", "steal"))


def gpu_joules() -> float | None:
    """NVML's counter of the one GPU this job sees; None without NVML, counter or a single GPU."""
    name = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not name or "," in name:
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        by_index = name.isdigit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(name)) if by_index else pynvml.nvmlDeviceGetHandleByUUID(name)
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
    except Exception:  # no library, no driver, no counter: all the same to a job
        return None


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdigit() else None


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
