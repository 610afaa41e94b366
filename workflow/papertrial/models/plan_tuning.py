"""Choose among samplers by their samples from noise that no result uses."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from papertrial.engine.results import Row
from papertrial.methods.samplers import VE, Path
from papertrial.models.sampler_lab import Plan, SamplerLab

Key = TypeVar("Key", bound=Hashable)


def best_plan(
    lab: SamplerLab, plans: Mapping[Key, Plan], seeds: Sequence[int], n: int, metric: str, path: Path = VE
) -> tuple[Key, list[Row]]:
    """The plan with the smallest metric, and all that was tried.

    Args:
        seeds: of the noise; the samples of all of them are measured together.
        n: how many samples in all.
        metric: "fd" or "sw2", as the lab's judge names it.
        path: the coordinates that the plans' rules work in.

    Returns:
        a key of ``plans``; one row a plan: seed (the first), nfe, tried (the key as text), and the metric.
    """
    noise, label, _ = lab.start(seeds, n // len(seeds))
    tried = []
    for key, plan in plans.items():
        x0, nfe = lab.sample(plan, noise, label, path)
        tried.append({"seed": seeds[0], "nfe": nfe, "tried": str(key), metric: lab.judge(x0, label.cpu())[metric]})
    return min(zip(plans, tried, strict=True), key=lambda pair: pair[1][metric])[0], tried
