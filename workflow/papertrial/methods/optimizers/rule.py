"""What an optimizer is here: a rule that turns (x, gradient, state, learning rate) into the next x and state.

A rule is a frozen dataclass of its constants and keeps nothing else, so one rule serves any number of runs:

    state = rule.init(x)
    x, state = rule.step(x, g, state, lr)

x is any float array, numpy or torch, and is never written to. Elementwise rules don't look at its shape: a whole
network as one vector, or a stack of runs (runs, d) whose constants differ, given as (runs, 1) arrays. A state maps
names to what must persist between steps: arrays, floats, and step counters as ints.
"""

import sys
from types import ModuleType
from typing import Any, Protocol

Array = Any  # numpy.ndarray or torch.Tensor
State = dict[str, Any]


class Rule(Protocol):
    def init(self, x: Array) -> State:
        """The state before the first step."""

    def step(self, x: Array, g: Array, state: State, lr: float) -> tuple[Array, State]:
        """The next x and state, from the gradient g at x."""


def namespace(x: Array) -> ModuleType:
    """numpy for an array, torch for a tensor; who works with arrays never imports torch."""
    return sys.modules[type(x).__module__.partition(".")[0]]
