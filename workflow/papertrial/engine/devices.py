"""Where torch methods run: which device, which GPU of several, and with which numerics.

Locally every job takes a GPU of its own, by locks that the kernel drops when the job's process ends, however it ends.
Under Slurm, which has chosen already, nothing is taken.
"""

import fcntl
import os
import random
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from papertrial.engine import paths
from papertrial.engine.errors import PapertrialError

PARTS = 12  # locks of one GPU: a job of which k fit on it takes PARTS / k of them
PRECISIONS = ("highest", "tf32", "bf16")


def resolve(device: str, torch_needed: bool) -> str:
    """The device a job runs on; a job without torch runs on the CPU whatever was asked.

    Raises:
        PapertrialError: the device asked for isn't there.
    """
    if not torch_needed or device == "cpu":
        return "cpu"
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, there in present.items() if there)
    if not present[device]:
        raise PapertrialError(f"device={device} was asked for, but torch {torch.__version__} finds none here")
    return device


@contextmanager
def lent(device: str, torch_needed: bool, settings: Iterable[Mapping[str, Any]], fit: int = 1) -> Iterator[str]:
    """The device a job runs on, and on a GPU one that no other job has while this one runs.

    Args:
        device: what the user asked for.
        torch_needed: whether the job's code imports torch.
        settings: of everything the job runs, for the precision that they allow.
        fit: how many such jobs one GPU holds.
    """
    slots = gpus() if torch_needed and device in ("auto", "cuda") and built_for_cuda() else []
    held = _wait(slots, fit) if slots else []
    try:
        found = resolve(device, torch_needed)
        if found == "cuda":
            set_numerics(precision(settings))
        yield found
    finally:
        for lock in held:
            lock.close()


def built_for_cuda() -> bool:
    import torch

    return torch.version.cuda is not None


def gpus() -> list[str]:
    """The GPUs among which jobs of this machine may choose, as CUDA_VISIBLE_DEVICES names them.

    Those that the user left visible, otherwise all, by their unique names: CUDA's own numbers go by speed. Asked of
    the driver's tool, since asking CUDA would settle for this process which devices it sees.
    """
    if "SLURM_JOB_ID" in os.environ:
        return []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name.strip() for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in said.splitlines() if line.strip()]


def _wait(slots: list[str], fit: int) -> list[IO]:
    """Take one of the GPUs for this process, as soon as one is free."""
    if PARTS % fit:
        raise PapertrialError(f"per_gpu: {fit} is not a divisor of {PARTS}; take 1, 2, 3, 4, 6 or 12")
    told = False
    while True:
        for slot in random.sample(slots, len(slots)):
            held = _take(paths.SCRATCH / "gpus" / slot, PARTS // fit)
            if held:
                os.environ["CUDA_VISIBLE_DEVICES"] = slot
                return held
        if not told:
            print(f"waiting for a GPU: {', '.join(slots)} taken by other jobs", flush=True)
            told = True
        time.sleep(random.uniform(0.2, 1))  # two that got half each must not meet again


def _take(folder: Path, parts: int) -> list[IO]:
    """Hold so many of one GPU's locks, or none of them."""
    folder.mkdir(parents=True, exist_ok=True)
    held: list[IO] = []
    for i in range(PARTS):
        lock = (folder / f"{i}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        held.append(lock)
        if len(held) == parts:
            return held
    for lock in held:
        lock.close()
    return []


def precision(settings: Iterable[Mapping[str, Any]]) -> str:
    """What the settings of everything in a job allow: ``precision: tf32`` or ``bf16``, if all of it says so.

    A setting, so that it enters the fingerprint. bf16 is the method's own doing (torch.autocast around its forward
    pass); TF32, which changes every matrix product of the process, is the engine's.
    """
    asked = {s.get("precision", "highest") for s in settings}
    unknown = asked - set(PRECISIONS)
    if unknown:
        raise PapertrialError(f"precision: '{unknown.pop()}' is none of {', '.join(PRECISIONS)}")
    return asked.pop() if len(asked) == 1 else "highest"


def set_numerics(allowed: str) -> None:
    """Make CUDA as repeatable as it can be: deterministic kernels, none chosen by timing, no TF32 unless allowed.

    An operation without a deterministic kernel warns in the job's log; it does not stop a training.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed == "tf32"


def numerics(device: str, settings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What of a GPU's numerics was in force, for the provenance; empty on other devices."""
    if device != "cuda":
        return {}
    import torch

    return {
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "precision": precision(settings),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }
