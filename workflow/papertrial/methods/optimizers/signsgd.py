"""signSGD: steepest descent in the max norm, x <- x - lr sign(g). No state.

Source: Bernstein et al., arXiv:1802.04434, algorithm 1.
"""

from dataclasses import dataclass

from papertrial.methods.optimizers.rule import Array, State, namespace


@dataclass(frozen=True)
class SignSGD:
    def init(self, x: Array) -> State:
        return {}

    def step(self, x: Array, g: Array, state: State, lr: float) -> tuple[Array, State]:
        return x - lr * namespace(x).sign(g), state
