"""AdamW: Adam with decoupled weight decay.

    m <- beta1 m + (1 - beta1) g,    v <- beta2 v + (1 - beta2) g^2
    x <- x - lr (m / (1 - beta1^k) / (sqrt(v / (1 - beta2^k)) + eps) + lambda x),    k = 1, 2, ...

Two moments: 8 bytes a parameter in float32. Source: Loshchilov and Hutter, arXiv:1711.05101, algorithm 2.
"""

from dataclasses import dataclass

from papertrial.methods.optimizers.rule import Array, State, namespace


@dataclass(frozen=True)
class AdamW:
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float | Array = 0.0

    def init(self, x: Array) -> State:
        return {"m": 0 * x, "v": 0 * x, "k": 0}

    def step(self, x: Array, g: Array, state: State, lr: float) -> tuple[Array, State]:
        k = state["k"] + 1
        m = self.beta1 * state["m"] + (1 - self.beta1) * g
        v = self.beta2 * state["v"] + (1 - self.beta2) * g * g
        root = namespace(x).sqrt(v / (1 - self.beta2**k)) + self.eps
        x = x - lr * (m / (1 - self.beta1**k) / root + self.weight_decay * x)
        return x, {"m": m, "v": v, "k": k}
