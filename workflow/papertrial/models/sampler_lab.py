"""Where samplers of the same trained network are compared: same noise, same labels, same measures, counted NFE.

The network is a base model, fm16 as a rule; samples are judged by the classifier of its size (FD, label accuracy) and
against what the network gives with evaluations to spare (fm16-reference).
"""

from collections.abc import Callable, Sequence
from math import log

import numpy as np
from torch import Tensor

from papertrial.engine.results import Inputs, Row
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import VE, Counted, Path, Rule, balanced_labels, noise_stream, solve
from papertrial.models import picture_denoisers
from papertrial.models.classifiers import SampleJudge
from papertrial.testbeds.samplequality import ode_error

JUDGES = {"fm8": "clf8", "fm16": "clf16"}

Plan = tuple[Rule | Sequence[Rule], np.ndarray]  # a rule for all N steps or one for each, and N + 1 levels


def on_grid(rule: Rule, name: str, nfe: int) -> Plan:
    """A rule that takes one evaluation a step on nfe levels; the last evaluation denoises."""
    return rule, grid(name, nfe - 1)


class SamplerLab:
    """The network, its judge and its references.

    Args:
        base, part: the network; fm8's parts are "256-0" and the like.

    Attributes:
        denoise: D(x, s, label), counted.
        judge: {"fd", "accuracy"} of samples and labels.
        references: of every noise seed, the state that fm16-reference kept; fm8 has none.
    """

    def __init__(self, inputs: Inputs, device: str, base: str = "fm16", part: str = "0") -> None:
        network = inputs.models[base][part]
        self.device, self.shape = device, picture_denoisers.shape(network)
        self.denoise = Counted(picture_denoisers.denoiser(network, device))
        self.judge = SampleJudge(inputs.models[JUDGES[base]]["0"], device)
        self.references = inputs.models.get(f"{base}-reference", {})

    def start(self, seeds: Sequence[int], n: int) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
        """n noises a seed, their labels, and a source of further noise for stochastic samplers."""
        draw = noise_stream(seeds, n, self.shape)
        return draw().to(self.device), balanced_labels(seeds, n).to(self.device), lambda: draw().to(self.device)

    def sample(
        self, plan: Plan, noise: Tensor, label: Tensor, path: Path = VE, final: bool = True
    ) -> tuple[Tensor, int]:
        """Samples in VE coordinates (x0 where ``final``, else x at the last level), and the NFE they took."""
        rule, levels = plan
        self.denoise.nfe = 0
        x = solve(self.denoise, path.sigma(-log(levels[0])) * noise, levels, rule, label, path, final)
        return x if final else x / path.alpha(-log(levels[-1])), self.denoise.nfe

    def measure(self, x0: Tensor, label: Tensor, seed: int) -> dict[str, float]:
        """fd, accuracy, ode_median and ode_rms of the samples from a seed's noise."""
        truth = self.references[str(seed)]["ode_x0"][: len(x0)]
        return {**self.judge(x0, label.cpu()), **ode_error(x0[: len(truth)].cpu().numpy(), truth)}

    def reference(self, seed: int, n: int) -> dict[str, float]:
        """nfe and fd of the reference samples from the seed's first n noises."""
        kept = self.references[str(seed)]
        return {"nfe": kept["nfe"].item(), "fd": self.judge.frechet(kept["features"][:n])}

    def best_grid(self, rule: Rule, nfe: int, grids: Sequence[str], seed: int, n: int) -> tuple[str, list[Row]]:
        """The grid on which a rule has the smallest FD on a tuning seed, and all that was tried."""
        noise, label, _ = self.start([seed], n)
        tried = []
        for name in grids:
            x0, _ = self.sample(on_grid(rule, name, nfe), noise, label)
            tried.append({"seed": seed, "nfe": nfe, "grid": name, "fd": self.judge(x0, label.cpu())["fd"]})
        return min(tried, key=lambda row: row["fd"])["grid"], tried
