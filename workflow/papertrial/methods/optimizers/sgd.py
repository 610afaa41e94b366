"""Gradient steps, with and without momentum; what is a full gradient or a mini-batch's is the caller's business.

    GradientDescent    x <- x - lr g
    Momentum           u <- mu u + g,    x <- x - lr u          (Polyak's heavy ball: 4 bytes a parameter in float32)

Source: Polyak 1964, in the form of Sutskever et al. 2013 where lr multiplies the whole velocity.
"""

from dataclasses import dataclass

from papertrial.methods.optimizers.rule import Array, State


@dataclass(frozen=True)
class GradientDescent:
    def init(self, x: Array) -> State:
        return {}

    def step(self, x: Array, g: Array, state: State, lr: float) -> tuple[Array, State]:
        return x - lr * g, state


@dataclass(frozen=True)
class Momentum:
    mu: float = 0.9

    def init(self, x: Array) -> State:
        return {"u": 0 * x}

    def step(self, x: Array, g: Array, state: State, lr: float) -> tuple[Array, State]:
        u = self.mu * state["u"] + g
        return x - lr * u, {"u": u}
