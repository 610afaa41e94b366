"""What a mask update keeps in memory for the way back, with and without checkpoints at the sampler's steps."""

from collections.abc import Callable
from time import process_time
from weakref import finalize

import torch
from torch import Tensor

from papertrial.engine.results import Results
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import ddim
from papertrial.papers.diffusion.ecodiff_pruning.gates import Gated, hard_concrete
from papertrial.papers.diffusion.ecodiff_pruning.learning import (
    Lessons,
    Masked,
    along,
    checkpointed,
    end_to_end,
    plain,
)


class Kept:
    """A tensor that autograd keeps."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Ledger:
    """Bytes of the storages that autograd keeps, each counted once however often it is kept, from saving to release.

    Args:
        weights: not counted.
    """

    def __init__(self, weights: list[Tensor]) -> None:
        self.ignored = {w.untyped_storage().data_ptr() for w in weights}
        self.holders: dict[int, int] = {}
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> Kept:
        kept, storage = Kept(tensor.detach()), tensor.untyped_storage()
        where, size = storage.data_ptr(), storage.nbytes()
        if where not in self.ignored:
            self.holders[where] = self.holders.get(where, 0) + 1
            self.now += size * (self.holders[where] == 1)
            self.peak = max(self.peak, self.now)
            finalize(kept, self.release, where, size)
        return kept

    def release(self, where: int, size: int) -> None:
        self.holders[where] -= 1
        if not self.holders[where]:
            del self.holders[where]
            self.now -= size


def saved_bytes(gated: Gated, backward: Callable[[], object]) -> tuple[int, object]:
    """The most that was kept at any time while ``backward`` ran, and its answer."""
    ledger = Ledger(list(gated.model.parameters()))
    with torch.autograd.graph.saved_tensors_hooks(ledger.pack, lambda kept: kept.tensor):
        answer = backward()
    return ledger.peak, answer


def mask_gradient(gated: Gated, steps: int, lessons: Lessons, how: Masked, start: float, u: Tensor) -> Tensor:
    """(gates,) gradient of the end-to-end loss with respect to the log-odds, one update's worth."""
    log_alpha = torch.full((u.shape[1],), start, dtype=u.dtype, device=u.device, requires_grad=True)
    sampler = along(grid("karras", steps - 1), ddim)
    end_to_end(gated, sampler, lessons, how)(hard_concrete(log_alpha, u), 0).backward()
    return log_alpha.grad


def measured(gated: Gated, shape: tuple[int, ...], p: dict, seed: int, device: str) -> Results:
    """A row for every number of sampling steps: peak bytes and the difference of the gradients; times apart."""
    found = Results([])
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(p["batch"], len(gated.costs), generator=generator).clamp(1e-6, 1 - 1e-6).to(device)
    open_mask = torch.ones(1, len(gated.costs), device=device)
    for steps in p["steps"]:
        sampler = along(grid("karras", steps - 1), ddim)
        lessons = Lessons.of(gated.under(open_mask), sampler, shape, 1, p["batch"], seed)
        backward = {
            how: lambda how=how, steps=steps, lessons=lessons: mask_gradient(gated, steps, lessons, how, p["start"], u)
            for how in (plain, checkpointed)
        }
        size, gradient = zip(*(saved_bytes(gated, backward[how]) for how in (plain, checkpointed)), strict=True)
        apart = (gradient[0] - gradient[1]).norm() / gradient[0].norm()
        row = {"seed": seed, "noise": 0, "steps": steps, "bytes_plain": size[0], "bytes_checkpointed": size[1]}
        found.rows.append({**row, "gradient_difference": float(apart)})
        for repeat in range(p["repeats"]):  # in turn, so that both meet the same machine
            times = {how.__name__: seconds(run) for how, run in backward.items()}
            found.timings.append({"seed": seed, "steps": steps, "repeat": repeat, **times})
    return found


def seconds(run: Callable[[], object]) -> float:
    """CPU time of one call."""
    begun = process_time()
    run()
    return process_time() - begun
