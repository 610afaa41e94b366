"""The training loop: the same batches for every optimizer, nothing read back from the device on the way."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papertrial.engine.results import Row
from papertrial.methods.optimizers.rule import Rule, State
from papertrial.testbeds.optbench.flat import Flat
from papertrial.testbeds.optbench.memory import state_bytes
from papertrial.testbeds.optbench.networks import initialised
from papertrial.testbeds.optbench.schedule import Schedule, warmup_cosine
from papertrial.testbeds.optbench.workloads import Batch, Workload


@dataclass(frozen=True)
class Trained:
    """A finished run.

    history: rows of step, samples, train_loss (mean since the last row), val_loss, lr.
    """

    net: nn.Module
    state: State
    history: list[Row]


def train(
    workload: Workload,
    rule: Rule,
    peak: float,
    seed: int,
    steps: int | None = None,
    every: int | None = 25,
    schedule: Schedule = warmup_cosine,
) -> Trained:
    """Train a workload by an elementwise rule.

    Args:
        peak: learning rate that the schedule scales.
        seed: of the initial weights and of the order of the batches.
        steps: updates, the workload's standard budget by default.
        every: updates between two evaluations; the end is always evaluated, None: only the end.
    """
    steps = steps or workload.steps
    order = workload.train.order(np.random.default_rng(seed), steps, workload.batch)
    order = torch.from_numpy(order).to(workload.device)
    flat = Flat(initialised(workload.build, seed, workload.device))
    state = rule.init(flat.x)
    losses = torch.empty(steps, device=workload.device)
    measured: list[tuple[int, Tensor]] = []
    for k in range(steps):
        inputs, targets = workload.train[order[k]]
        loss = cross_entropy(flat.net(inputs), targets)
        flat.g.zero_()
        loss.backward()
        if workload.clip is not None:
            flat.g *= (workload.clip / (flat.g.norm() + 1e-6)).clamp(max=1.0)
        x, state = rule.step(flat.x, flat.g, state, peak * schedule(k, steps))
        flat.x.copy_(x)
        losses[k] = loss.detach()
        if k + 1 == steps or (every and (k + 1) % every == 0):
            measured.append((k + 1, evaluate(flat.net, workload.validation, workload.chunk)[0]))
    return Trained(flat.net, state, _history(workload, losses, measured, peak, schedule))


def _history(
    workload: Workload, losses: Tensor, measured: list[tuple[int, Tensor]], peak: float, schedule: Schedule
) -> list[Row]:
    losses, rows, last = losses.tolist(), [], 0
    for step, val_loss in measured:
        rows.append(
            {
                "step": step,
                "samples": step * workload.batch,
                "train_loss": float(np.mean(losses[last:step])),
                "val_loss": val_loss.item(),
                "lr": peak * schedule(step - 1, len(losses)),
            }
        )
        last = step
    return rows


@torch.no_grad()
def evaluate(net: nn.Module, batch: Batch, chunk: int) -> tuple[Tensor, Tensor]:
    """Mean loss and accuracy over all predictions of a fixed batch."""
    was_training = net.training
    net.eval()
    loss = hits = 0.0
    for inputs, targets in zip(*(part.split(chunk) for part in batch), strict=True):
        logits = net(inputs)
        loss = loss + cross_entropy(logits, targets, "sum")
        hits = hits + (logits.argmax(-1) == targets).sum()
    net.train(was_training)
    return loss / batch[1].numel(), hits / batch[1].numel()


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """(..., classes), (...) -> nats a prediction."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction=reduction)


def measured_run(workload: Workload, trained: Trained, seed: int, peak: float) -> tuple[Row, list[Row]]:
    """What every paper records of a run: its row, and its learning curve as traces."""
    test_loss, test_accuracy = evaluate(trained.net, workload.test, workload.chunk)
    row = {
        "seed": seed,
        "peak_lr": peak,
        "val_loss": trained.history[-1]["val_loss"],
        "train_loss": trained.history[-1]["train_loss"],
        "test_loss": test_loss.item(),
        "test_accuracy": test_accuracy.item(),
        "state_bytes": state_bytes(trained.state),
    }
    return row, [{"seed": seed, **point} for point in trained.history]
