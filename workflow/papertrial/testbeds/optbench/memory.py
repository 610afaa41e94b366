"""Exact bytes of optimizer state: what must persist between steps beside weights and gradients.

Arrays count numel x element size, floats that the rule uses 4; step counters (ints) don't count. In float32, a
parameter: SGD 0, momentum 4, Lion 4, AdamW 8 bytes.
"""

from papertrial.methods.optimizers.rule import State


def state_bytes(state: State) -> int:
    return sum(_bytes(value) for value in state.values())


def _bytes(value: object) -> int:
    if isinstance(value, int):
        return 0
    if isinstance(value, float):
        return 4
    if isinstance(value, dict):
        return state_bytes(value)
    if isinstance(value, list | tuple):
        return sum(map(_bytes, value))
    return value.nbytes
