"""Lion: the sign of an interpolated momentum, with decoupled weight decay.

    c = beta1 m + (1 - beta1) g
    x <- x - lr (sign(c) + lambda x)
    m <- beta2 m + (1 - beta2) g

One moment: 4 bytes a parameter in float32. Source: Chen et al., arXiv:2302.06675, algorithm 2.
"""

from dataclasses import dataclass

from papertrial.methods.optimizers.rule import Array, State, namespace


@dataclass(frozen=True)
class Lion:
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float | Array = 0.0

    def init(self, x: Array) -> State:
        return {"m": 0 * x}

    def step(self, x: Array, g: Array, state: State, lr: float) -> tuple[Array, State]:
        m = state["m"]
        c = self.beta1 * m + (1 - self.beta1) * g
        x = x - lr * (namespace(x).sign(c) + self.weight_decay * x)
        return x, {"m": self.beta2 * m + (1 - self.beta2) * g}
