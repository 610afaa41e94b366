"""EcoDiff: prune a trained diffusion model by masks learnt through its whole sampler, and no retraining.

Every method scores the same gates (gates.py, learning.py) and closes the lowest until the same share of parameters is
gone. What is left, cut out of the weights and otherwise untouched, is sampled from: on a U-Net (c1, c2) and on a
consistency student (c4). c3 is about the memory that learning takes (memory.py).

Source: Zhang et al. 2024 (arXiv 2412.02852).
"""

import json
from collections.abc import Callable
from functools import cache, lru_cache
from time import process_time

import numpy as np
from torch import Tensor, nn

from papertrial.engine.results import Inputs, Results, Row
from papertrial.methods.consistency import sampling_levels
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import balanced_labels, ddim, heun, noise_stream
from papertrial.models.classifiers import SampleJudge
from papertrial.models.edm import Draw, batched, denoising
from papertrial.models.picture_denoisers import load, shape, training_pictures
from papertrial.models.students import distil
from papertrial.models.training import Training, fit
from papertrial.papers.diffusion.ecodiff_pruning import learning
from papertrial.papers.diffusion.ecodiff_pruning.gates import Closed, Gated, weakest
from papertrial.papers.diffusion.ecodiff_pruning.learning import (
    SCALINGS,
    Lessons,
    Sampler,
    along,
    end_to_end,
    in_few_steps,
    learn,
    step_wise,
)
from papertrial.papers.diffusion.ecodiff_pruning.memory import measured
from papertrial.testbeds.samplequality import ode_error

SHOWN = 20  # samples kept for a figure


class Bench:
    """A model to prune, and what its samples are judged by.

    Args:
        model: as it is before pruning.
        short, long: the sampler that masks are learnt through, and the one that is judged.
        draw: training pictures and labels.
        shape: of a picture.
    """

    def __init__(
        self, p: dict, model: nn.Module, short: Sampler, long: Sampler, draw: Draw, judge: SampleJudge, shape: tuple
    ) -> None:
        self.p, self.model, self.short, self.long, self.draw = p, model, short, long, draw
        self.judge, self.shape, self.gated, self.whole = judge, shape, Gated(model), b""
        self.device = str(next(model.parameters()).device)
        # what several methods need is computed once
        self.samples = lru_cache(maxsize=8)(self.samples)
        self.lessons, self.slopes, self.option = cache(self.lessons), cache(self.slopes), cache(self.option)

    def walked(self, model: nn.Module, seed: int, n: int) -> tuple[Tensor, Tensor]:
        """n pictures and their labels from a noise seed."""
        draw, label = noise_stream([seed], n, self.shape), balanced_labels([seed], n).to(self.device)
        noise = [draw().to(self.device) for _ in range(self.long.draws)]
        return self.long.walk(batched(model.requires_grad_(False), self.p["at_once"]), noise, label), label

    def samples(self, closed: bytes, seed: int, n: int) -> tuple[Tensor, Tensor, float]:
        """Those of the pruned model (of the model itself where nothing is named), and the CPU time they took."""
        begun = process_time()
        model = self.gated.pruned(np.frombuffer(closed, bool)) if closed else self.model
        return *self.walked(model, seed, n), process_time() - begun

    def compared(self, x0: Tensor, label: Tensor, seed: int) -> Row:
        """fd, accuracy, and the rms distance to what the unpruned model makes of the same noise."""
        truth = self.samples(self.whole, seed, len(x0))[0]
        rms = ode_error(x0.cpu().numpy(), truth.cpu().numpy())["ode_rms"]
        return {**self.judge(x0, label.cpu()), "rms": rms}

    def lessons(self, updates: int, seed: int) -> Lessons:
        return Lessons.of(self.model, self.short, self.shape, updates, self.p["batch"], seed)

    def slopes(self, updates: int, seed: int) -> np.ndarray:
        """(gates,) Taylor's scores from as many evaluations as the masks are learnt from."""
        n = self.p["batch"] * self.p["evaluations"]
        return learning.taylor(self.gated, self.draw, n, self.p, updates, seed, self.device)

    def option(self, method: str) -> tuple[object, tuple[tuple[object, float], ...]]:
        """What the method is offered and suits it best on this bench: after fewer updates, by rms; and all trials."""
        p, seed, trials = self.p, self.p["tuning_seed"], {}
        options = OPTIONS[method](p)
        if len(options) > 1:
            for option in options:
                score, _ = SCORES[method](self, option, p["tuning_updates"], seed)
                closed = weakest(score, self.gated, p["share"])
                x0, label, _ = self.samples(closed.tobytes(), seed, p["tuning_n"])
                trials[option] = self.compared(x0, label, seed)["rms"]
        return min(options, key=lambda option: trials.get(option, 0.0)), tuple(trials.items())


Score = Callable[[Bench, object, int, int], tuple[np.ndarray, list[Row]]]


def ecodiff(bench: Bench, beta: float, updates: int, seed: int, roll: bool = False) -> tuple[np.ndarray, list[Row]]:
    lessons = bench.lessons(updates, seed)
    objective = end_to_end(bench.gated, bench.short, lessons.rolled() if roll else lessons)
    return learn(bench.gated, objective, bench.p["batch"], beta, bench.p, updates, seed, bench.device)


def rolled(bench: Bench, beta: float, updates: int, seed: int) -> tuple[np.ndarray, list[Row]]:
    """The control: targets of other noises."""
    return ecodiff(bench, beta, updates, seed, roll=True)


def stepwise(bench: Bench, beta: float, updates: int, seed: int) -> tuple[np.ndarray, list[Row]]:
    """Single predictions in place of whole samples; as many network evaluations in an update."""
    n = bench.p["batch"] * bench.p["evaluations"]
    objective = step_wise(bench.gated, bench.model, bench.draw)
    return learn(bench.gated, objective, n, beta, bench.p, updates, seed, bench.device)


def taylor(bench: Bench, scaling: str, updates: int, seed: int) -> tuple[np.ndarray, list[Row]]:
    return SCALINGS[scaling](bench.slopes(updates, seed), bench.gated.layers), []


def magnitude(bench: Bench, scaling: str, updates: int, seed: int) -> tuple[np.ndarray, list[Row]]:
    return SCALINGS[scaling](learning.magnitude(bench.gated), bench.gated.layers), []


def random(bench: Bench, option: None, updates: int, seed: int) -> tuple[np.ndarray, list[Row]]:
    return np.random.default_rng(seed).random(len(bench.gated.costs)), []


SCORES: dict[str, Score] = {f.__name__: f for f in (ecodiff, rolled, stepwise, taylor, magnitude, random)}
OPTIONS: dict[str, Callable[[dict], list]] = {
    **dict.fromkeys(("ecodiff", "stepwise"), lambda p: p["betas"]),
    **dict.fromkeys(("taylor", "magnitude"), lambda p: list(SCALINGS)),
    "random": lambda p: [None],
}
TUNED_AS = {"rolled": "ecodiff"}  # the control differs in its targets alone


class Same:
    """Something that equals itself alone, so that benches can be remembered by the inputs that they were made from."""

    def __init__(self, it: Inputs) -> None:
        self.it = it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.it is other.it

    def __hash__(self) -> int:
        return id(self.it)


def diffusion(p: dict, inputs: Inputs, seed: int, device: str) -> Bench:
    """fm16: one network for all seeds; masks are learnt through DDIM, Heun's rule is judged."""
    state = inputs.models["fm16"]["0"]
    draw, _ = training_pictures(inputs.datasets["fashion_mnist"], shape(state)[-1], p["images"], device)
    short, long = along(grid("karras", p["evaluations"] - 1), ddim), along(grid("karras", p["heun_steps"]), heun)
    judge = SampleJudge(inputs.models["clf16"]["0"], device)
    return Bench(p, load(state, device).requires_grad_(False), short, long, draw, judge, shape(state))


def student(p: dict, inputs: Inputs, seed: int, device: str) -> Bench:
    """A consistency student of fm8 for each seed; the same few evaluations for learning and judging."""
    state, levels = inputs.models["fm8"]["256-0"], grid("karras", p["intervals"])
    draw, _ = training_pictures(inputs.datasets["fashion_mnist"], shape(state)[-1], p["images"], device)
    model, _ = distil(
        load(state, device), draw, levels, p["distil_updates"], p["distil_lr"], seed, batch=p["distil_batch"]
    )
    sampler, judge = (
        in_few_steps(sampling_levels(p["evaluations"], levels)),
        SampleJudge(inputs.models["clf8"]["0"], device),
    )
    return Bench(p, model.requires_grad_(False), sampler, sampler, draw, judge, shape(state))


BENCHES = {"diffusion": (diffusion, False), "student": (student, True)}  # and whether every seed has its own


@lru_cache(maxsize=6)
def remembered(inputs: Same, plain: str, seed: int, device: str) -> Bench:
    p = json.loads(plain)
    return BENCHES[p["model"]][0](p, inputs.it, seed, device)


def tuned_further(bench: Bench, closed: Closed, updates: int, seed: int) -> nn.Module:
    """The pruned model after some updates of its weights on the denoising loss."""
    model, p = bench.gated.pruned(closed).requires_grad_(True), bench.p
    loss = denoising(bench.draw, p["finetune_batch"], p["log_mean"], p["log_sd"])
    return fit(model, loss, Training(updates, p["finetune_lr"]), seed)[0].eval()


def pruned(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """Rows (noise): the quality of samples at the share that claims are about; printed shares go to the traces."""
    p, found, n = {**problem, **settings}, Results([]), problem["n"]
    plain, own = json.dumps(problem, sort_keys=True), BENCHES[problem["model"]][1]
    at = lambda seed: remembered(Same(inputs), plain, seed if own else 0, device)  # noqa: E731
    option, trials = at(p["tuning_seed"]).option(TUNED_AS.get(method, method)) if method in SCORES else (None, ())
    found.traces += [{"seed": p["tuning_seed"], "option": str(o), "tuning_rms": rms} for o, rms in trials]
    for seed in seeds:
        bench, begun = at(seed), process_time()
        gated, noises = bench.gated, p["noises"]
        none = np.zeros(len(gated.costs), bool)
        score, losses = SCORES[method](bench, option, p["updates"], seed) if method in SCORES else (None, [])
        found.traces += losses
        found.timings.append({"seed": seed, "scoring_s": process_time() - begun})

        def close(share: float, score: np.ndarray | None = score, gated: Gated = gated, none: Closed = none) -> Closed:
            return none if score is None else weakest(score, gated, share)

        closed = close(p["share"])
        left = {"parameters": gated.total - gated.removed(closed), "gone": gated.removed(closed) / gated.total}
        for noise in noises:
            key = closed.tobytes() if closed.any() else bench.whole
            x0, label, cpu_s = bench.samples(key, noise, n)
            row = {"seed": seed, "noise": noise, "steps": p["evaluations"]}
            quality = bench.compared(x0, label, noise) if noise == noises[0] else bench.judge(x0, label.cpu())
            found.rows.append({**row, **quality, **left})
            found.timings.append({"seed": seed, "noise": noise, "sampling_s": cpu_s})
            if method == "full":
                found.traces.append({"seed": seed, "noise": noise, "floor": bench.judge.floor(noise, n)})
            if seed == seeds[0] and noise == noises[0]:
                found.state[f"samples_{seed}"] = x0[:SHOWN, 0].cpu().numpy().copy()
        for i, (block, part) in enumerate(zip(gated.blocks, gated.split(closed), strict=True)):
            shut = block.branch and bool(part[-1])
            left = 0.0 if shut else float(1 - part[: block.channels].mean())
            found.traces.append({"seed": seed, "block": i, "left": left})
        if seed == 0:
            found.traces += printed(bench, p, close, p["finetune"] if method == "ecodiff" else 0)
    return found


def printed(bench: Bench, p: dict, close: Callable[[float], Closed], updates: int) -> list[Row]:
    """One mask at other shares; and the model after some updates of fine-tuning."""
    rows, n, noise = [], p["n"], p["noises"][0]
    for share in p.get("other_shares", []):
        closed = close(share)
        if closed.any():
            x0, label, _ = bench.samples(closed.tobytes(), noise, n)
            rows.append({"seed": 0, "share": share, "finetuned": 0, **bench.compared(x0, label, noise)})
    if updates:
        model = tuned_further(bench, close(p["share"]), updates, 0)
        found = bench.compared(*bench.walked(model, noise, n), noise)
        rows.append({"seed": 0, "share": p["share"], "finetuned": updates, **found})
    return rows


def memory(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """Rows (steps): what one mask update keeps, with and without checkpoints."""
    state, found = inputs.models["fm16"]["0"], Results([])
    gated = Gated(load(state, device))
    for seed in seeds:
        of_seed = measured(gated, shape(state), {**problem, **settings}, seed, device)
        found.rows += of_seed.rows
        found.timings += of_seed.timings
    return found


MEASURES = {"pruned": pruned, "memory": memory}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One method on one problem; ``measure`` says what is measured."""
    return MEASURES[problem["measure"]](problem, method, settings, seeds, inputs, device)
