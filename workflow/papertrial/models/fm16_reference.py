"""fm16-reference: what fm16 would give with network evaluations to spare, for the noise of each seed.

Two references that all sampler papers share: samples and their features (the FD that a good sampler has), and the
ODE's solution (the error of a sampler). Both by DPM-Solver++(2M) on the karras grid.

State:
    nfe ()                      evaluations that these samples took
    gap ()                      rms difference between the solutions by 50 and by 100 steps: what ode_x is good to
    features (n, 64)            of the samples, 60 steps and the final denoising; the first m of them are the
                                samples of the first m noises, so ``FrechetDistance`` gives the FD at any n
    ode_x (m, 1, size, size)    the solution at s = .02 from the first m noises, 100 steps, no final denoising
    ode_x0 (m, 1, size, size)   the same after the final denoising
"""

import numpy as np

from papertrial.engine.results import Inputs, Results
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import Counted, balanced_labels, dpmpp2m, initial_noise, solve
from papertrial.models import fm16
from papertrial.models.arrays import Checkpoint
from papertrial.models.clf16 import SampleJudge
from papertrial.testbeds.samplequality import ode_error


def train(part: str, settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> Results:
    """A part is a noise seed; minutes at most, so nothing is checkpointed."""
    seed, network = int(part), inputs.models["fm16"]["0"]
    denoise = Counted(fm16.denoiser(network, device))
    noise = initial_noise([seed], settings["n"], fm16.shape(network)).to(device)
    label = balanced_labels([seed], settings["n"]).to(device)

    levels = grid("karras", settings["steps"])
    samples = solve(denoise, levels[0] * noise, levels, dpmpp2m, label)
    judge, nfe = SampleJudge(inputs.models["clf16"]["0"], device), denoise.nfe
    features, probability = judge.classify(samples)
    accuracy = float((probability.argmax(1) == label.cpu().numpy()).mean())
    row = {"seed": seed, "nfe": nfe, "fd": judge.frechet(features), "accuracy": accuracy}

    m = settings["ode_n"]
    ends = []
    for steps in (settings["ode_steps"] // 2, settings["ode_steps"]):
        levels = grid("karras", steps)
        ends.append(solve(denoise, levels[0] * noise[:m], levels, dpmpp2m, label[:m], final=False))
    x0 = denoise(ends[1], levels[-1], label[:m])
    gap = ode_error(ends[0].cpu().numpy(), ends[1].cpu().numpy())
    state = {"nfe": np.array(nfe), "gap": np.array(gap["ode_rms"]), "features": features}
    state |= {"ode_x": ends[1].cpu().numpy(), "ode_x0": x0.cpu().numpy()}
    return Results([row | {f"gap_{k}": v for k, v in gap.items()}], state=state)
