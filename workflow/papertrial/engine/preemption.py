"""What a job does when it's told to stop (SIGTERM): a training keeps its state, anything else ends at once.

A cluster that takes a node back sends SIGTERM and, half a minute later, SIGKILL. The state lies under
data/scratch/<fingerprint>/, outside the declared outputs, which Snakemake deletes before a rerun.
"""

import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from papertrial.engine import artifacts
from papertrial.engine.errors import PapertrialError


class Stopped(PapertrialError):
    """A job that was told to stop; the next run goes on."""


class FileCheckpoint:
    """Resume state in one safetensors file (see engine.checkpoints.Checkpoint)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.asked = False

    def load(self) -> dict[str, np.ndarray] | None:
        if not self._path.exists():
            return None
        from safetensors.numpy import load_file

        try:
            return load_file(self._path)
        except Exception as error:
            raise PapertrialError(f"{self._path}: not readable ({error}); delete it to start afresh") from None

    def save(self, state: Mapping[str, np.ndarray]) -> None:
        """Replace the saved state atomically; once asked to stop, end the job there.

        Raises:
            Stopped: the state is saved, and the job was told to stop.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        temporary.write_bytes(artifacts.packed(state))
        temporary.replace(self._path)
        if self.asked:
            raise Stopped(f"told to stop; state saved at {self._path}, the next run goes on from there")

    def ask(self) -> None:
        """Have the training save at its next step, and stop."""
        self.asked = True

    def discard(self) -> None:
        shutil.rmtree(self._path.parent, ignore_errors=True)


def stop() -> None:
    """End the job where it stands: what keeps no state starts over in the next run."""
    raise Stopped("told to stop before it finished; the next run starts it over")


@contextmanager
def on_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """Call ``act`` at the first SIGTERM while the job runs; a second one ends the process as ever."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may install handlers
        yield
        return

    def handle(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        act()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
