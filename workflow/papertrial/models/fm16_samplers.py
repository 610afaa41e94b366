"""fm16-samplers: the standard samplers on fm16 at a few numbers of evaluations, for papers to be read beside.

Rows: problem ``fm16-samplers``, method, seed (of the noise), nfe, fd, accuracy, ode_median, ode_rms, grid. A sampler
takes the grid with the smallest FD on a tuning seed, chosen for each NFE. Two evaluations a step (Heun), or three,
leave the rest of an NFE unused where it doesn't divide; the row's nfe is what was asked.
"""

from collections.abc import Callable

from papertrial.engine.results import Inputs, Results
from papertrial.methods.multistep import dpm3m, dpmpp3m, unipc2, unipc3
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import DPM, Rule, ab2, ddim, dpmpp2m, fast_orders, heun
from papertrial.models.arrays import Checkpoint
from papertrial.models.sampler_lab import Plan, SamplerLab, on_grid

PROBLEM = "fm16-samplers"


def each(rule: Rule, evaluations: int = 1) -> Callable[[int, str], Plan]:
    """The plan (nfe, grid) of a rule with so many evaluations a step, the last one denoising."""
    return lambda nfe, name: (rule, grid(name, (nfe - 1) // evaluations))


def fast(nfe: int, name: str) -> Plan:
    """DPM-Solver's rule "fast"."""
    orders = fast_orders(nfe - 1)
    return [DPM[k] for k in orders], grid(name, len(orders))


SAMPLERS: dict[str, Callable[[int, str], Plan]] = {
    "ddim": lambda nfe, name: on_grid(ddim, name, nfe),
    "ab2": each(ab2),
    "heun": each(heun, 2),
    "dpm-solver-fast": fast,
    "dpm-solver-3m": each(dpm3m),
    "dpmpp-2m": each(dpmpp2m),
    "dpmpp-3m": each(dpmpp3m),
    "unipc-2": each(unipc2),
    "unipc-3": each(unipc3),
}


def train(part: str, settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> Results:
    """A part is a sampler; nothing is trained or kept but rows."""
    lab, found, n = SamplerLab(inputs, device), Results([]), settings["n"]
    noise, label, _ = lab.start([settings["tuning_seed"]], settings["tuning_n"])
    for nfe in settings["nfe"]:
        tried = {}
        for name in settings["grids"]:
            x0, _ = lab.sample(SAMPLERS[part](nfe, name), noise, label)
            tried[name] = lab.judge(x0, label.cpu())["fd"]
        best = min(tried, key=tried.get)
        for seed in settings["seeds"]:
            x, y, _ = lab.start([seed], n)
            x0, _ = lab.sample(SAMPLERS[part](nfe, best), x, y)
            names = {"problem": PROBLEM, "method": part, "seed": seed, "nfe": nfe}
            found.rows.append({**names, **lab.measure(x0, y, seed)})
        found.traces += [{"method": part, "nfe": nfe, "grid": name, "fd": fd} for name, fd in tried.items()]
    return found


def passes(settings: dict) -> float:
    """Forward passes of an example."""
    asked = settings["n"] * len(settings["seeds"]) + settings["tuning_n"] * len(settings["grids"])
    return float(asked * sum(settings["nfe"]))
