"""DDO: fine-tune a likelihood-trained generative model as the discriminator between data and its own samples.

Fine-tuning starts from shared pre-trained models that are too small for their data, goes through rounds of self-play
(selfplay), and is compared with continued likelihood training on the same real samples; rate, beta and alpha are the
best of a tuning seed. Pictures and pixels are measured by FD, the ring of eight by what lies off its modes (benches).

Source: Zheng et al. 2025 (arXiv 2503.01103).
"""

from dataclasses import asdict, fields, replace
from time import process_time

from papertrial.engine.results import Inputs, Results, Row
from papertrial.papers.diffusion.direct_discriminative_optimization.benches import BENCHES, Bench
from papertrial.papers.diffusion.direct_discriminative_optimization.loss import OBJECTIVES
from papertrial.papers.diffusion.direct_discriminative_optimization.selfplay import (
    Rounds,
    Stage,
    opening,
    self_play,
    tuned,
)

PLAIN, GUIDED = "plain", "guided"


def measured(bench: Bench, stage: Stage, seed: int, every_way: bool = True) -> list[Row]:
    """The quality of a stage; an autoregressive model's also at its best guidance."""
    cell = {"seed": seed, "round": stage.round}
    rows = [{**cell, "sampling": PLAIN, "kept": stage.kept, **bench.quality(stage.model, seed)}]
    if every_way and "guidance" in bench.p:
        w = bench.best_guidance(stage.model, seed)
        found = bench.quality(stage.model, seed, w) if w else {k: rows[0][k] for k in ("fd", "coverage")}
        rows.append({**cell, "sampling": GUIDED, "kept": stage.kept, "w": w, **found})
    return rows


def fine_tuned(bench: Bench, method: str, seeds: list[int]) -> Results:
    """Rows (round): the reported quality at the end of every round that the problem asks for, and of the last."""
    p, found, objective = bench.p, Results([]), OBJECTIVES[method]
    how = Rounds(**{f.name: p[f.name] for f in fields(Rounds) if f.name in p})
    grids = {k: p[k] for k in objective.tuned}
    trial = replace(how, rounds=p["rounds_tuning"])
    setting, found.traces = tuned(bench, objective, grids, p["search"], trial, p["tuning_seed"])
    for seed in seeds:
        begun = process_time()
        for stage in self_play(bench, opening(bench, seed), objective, setting, how, seed):
            last = stage.round == how.rounds
            if last or p["all_rounds"]:
                share = stage.round * how.updates * how.batch / p["pretrained_on"]  # real samples drawn so far
                rows = measured(bench, stage, seed, every_way=last)
                found.rows += [{**row, "real_share": share, **asdict(setting)} for row in rows]
        found.timings.append({"seed": seed, "cpu_s": process_time() - begun})
        if seed == seeds[0]:
            found.state["samples"] = bench.shown(stage.model, seed)
    return found


def start(bench: Bench, method: str, seeds: list[int]) -> Results:
    """The pre-trained model."""
    found = Results([])
    for seed in seeds:
        model = bench.start(seed)
        found.rows += measured(bench, Stage(0, model, 0, None), seed)
        if seed == seeds[0]:
            found.state["samples"] = bench.shown(model, seed)
    return found


def guided(bench: Bench, method: str, seeds: list[int]) -> Results:
    """The usual remedy: the pre-trained model with guidance, at every strength."""
    cell = {"round": 0}
    return Results(
        [
            {"seed": seed, **cell, "sampling": f"w={w}", "w": w, **bench.quality(bench.start(seed), seed, w)}
            for seed in seeds
            for w in bench.p["strengths"]
        ]
    )


def real(bench: Bench, method: str, seeds: list[int]) -> Results:
    """As many real training pictures: the floor of FD."""
    return Results([{"seed": seed, "round": 0, "sampling": PLAIN, **bench.floor(seed)} for seed in seeds])


RUNS = {**dict.fromkeys(OBJECTIVES, fine_tuned), "start": start, "guided": guided, "real": real}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One method on one kind of model."""
    p = {**problem, **settings}
    return RUNS[method](BENCHES[p["task"]](p, inputs, device), method, seeds)
