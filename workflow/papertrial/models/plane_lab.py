"""Where samplers are compared on a density in the plane: as ``SamplerLab``, with SW2 in the place of FD."""

import torch
from torch import Tensor

from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import Counted, Denoiser, dpmpp2m
from papertrial.models.sampler_lab import SamplerLab
from papertrial.testbeds.mixtures import density
from papertrial.testbeds.samplequality import SlicedW2, ode_error


class PlaneLab(SamplerLab):
    """A density, and a denoiser of it that needs no labels: a trained network or, in float32, the exact one.

    Args:
        part: the density's name.
        n: how many draws of it the samples are compared with.
        truth_steps, truth_n: DPM-Solver++(2M) steps on the karras grid that give this denoiser's own solution, which
            ODE errors refer to, and for how many noises.
    """

    def __init__(
        self, denoise: Denoiser, part: str, n: int, truth_steps: int = 100, truth_n: int = 200, device: str = "cpu"
    ) -> None:
        self.device, self.shape, self.denoise = device, (2,), Counted(denoise)
        self.far = SlicedW2(density(part).sample(n, torch.Generator().manual_seed(0)).numpy())
        self.truth, self.truth_n = (dpmpp2m, grid("karras", truth_steps)), truth_n

    def judge(self, x0: Tensor, label: Tensor | None = None) -> dict[str, float]:
        return {"sw2": self.far(x0.cpu().numpy())}

    def measure(self, x0: Tensor, label: Tensor, seed: int) -> dict[str, float]:
        """sw2, ode_median and ode_rms of the samples from a seed's noise."""
        truth, _ = self.sample(self.truth, *self.start([seed], self.truth_n)[:2])
        error = ode_error(x0[: self.truth_n].cpu().numpy(), truth.cpu().numpy())
        return {**self.judge(x0), **error}
