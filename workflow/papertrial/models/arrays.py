"""Weights and settings as plain arrays: what base models keep, and what a long training resumes from."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

Arrays = Mapping[str, np.ndarray]


class Checkpoint(Protocol):
    """Resume state of a training.

    Attributes:
        asked: the job has been told to end: save now; ``save`` then doesn't return.
    """

    asked: bool

    def load(self) -> Arrays | None: ...

    def save(self, state: Arrays) -> None: ...


def to_arrays(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, np.ndarray]:
    """Tensors by name as arrays (copies)."""
    return {prefix + k: v.detach().cpu().contiguous().numpy().copy() for k, v in tensors.items()}


def from_arrays(arrays: Arrays, prefix: str = "") -> dict[str, Tensor]:
    """The arrays under a prefix as tensors (copies), the prefix taken off."""
    return {k[len(prefix) :]: torch.tensor(v) for k, v in arrays.items() if k.startswith(prefix)}


def from_settings(settings: Any) -> np.ndarray:
    """Nested settings (what JSON can say) as an array of bytes, to lie beside weights."""
    return np.frombuffer(json.dumps(settings, sort_keys=True).encode(), np.uint8).copy()


def to_settings(array: np.ndarray) -> Any:
    return json.loads(array.tobytes())


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A module whose initial weights come from a seed, the global generator left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
