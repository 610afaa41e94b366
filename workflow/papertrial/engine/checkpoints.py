"""What a recipe is handed to survive a kill. Recipes import it, so it imports nothing that changes with the engine."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np


class Checkpoint(Protocol):
    """Resume state of a long training, kept outside the declared outputs.

    A training loop does ``if step % save_every == 0 or checkpoint.asked: checkpoint.save(state)``: once the job is
    told to stop, ``asked`` is true, and ``save`` ends it when the state is written. The state holds all that the next
    step depends on (model, optimizer, generators, position in the data), so a resumed run ends in the same bits.
    """

    asked: bool

    def load(self) -> Mapping[str, np.ndarray] | None:
        """The last saved state, or None at a fresh start."""

    def save(self, state: Mapping[str, np.ndarray]) -> None:
        """Replace the saved state atomically."""
