"""Fills the templates."""

import shutil
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from papertrial.engine import artifacts, paths
from papertrial.engine.cards import Card
from papertrial.engine.evidence import Evidence
from papertrial.engine.plans import Plan

Record = dict[str, Any]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("papertrial.atlas"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment


def number(x: float | None) -> str:
    """Four significant digits, a dash for nothing."""
    return "–" if x is None else f"{x:.4g}"


def index(scale: str, records: list[Record], cards: dict[str, Card]) -> str:
    """One row a claim, over all papers."""
    counts: dict[str, int] = {}
    for entry in records:
        for claim in entry["claims"]:
            counts[claim["verdict"]] = counts.get(claim["verdict"], 0) + 1
    template = _environment().get_template("index.html.j2")
    return template.render(scale=scale, records=records, cards=cards, counts=counts)


def paper(card: Card, plan: Plan, found: Record, evidence: Evidence | None, folder: Path) -> str:
    """A paper's page; its figures and its table go to the folder beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    drawn = []
    if evidence is not None:
        folder.mkdir(parents=True)
        evidence.rows.to_csv(folder / "results.csv", index=False)
        from papertrial.atlas.figures import draw

        drawn = draw(card, evidence, folder)
    claims = {c.id: c for c in card.claims}
    provenances = [artifacts.provenance(u["path"]) for u in plan["units"].values() if Path(u["path"]).is_dir()]
    models = {
        m: [_gates(p) for p in parts.values() if Path(p).is_dir()] for m, parts in plan["needs"]["models"].items()
    }
    trials = evidence.trials.to_dict("records") if evidence is not None and not evidence.trials.empty else []
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            card=card,
            plan=plan,
            found=found,
            claims=claims,
            figures=drawn,
            provenances=provenances,
            models=models,
            trials=trials,
            scale=plan["scale"],
            root="../",
            recorded=paths.RECORDED,
            folder=folder.name,
        )
    )


def _gates(path: str) -> Record:
    record = artifacts.provenance(path)
    return {"path": path, "gates": record.get("gates", []), "cost": record["cost"]}
