"""Fills the templates."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from papertrial.atlas.forest import SIGNS, strips
from papertrial.atlas.wording import duration, number
from papertrial.engine import paths
from papertrial.engine.cards import SCALES, Card
from papertrial.engine.verdicts import VERDICTS

Record = dict[str, Any]
WHERE = {"run": "run here", "pulled": "pulled", "recorded": "recorded", "none": "never run"}
MEANING = {
    "replicated": "every criterion passes",
    "not replicated": "at least one criterion fails",
    "inconclusive": "none fails, but an interval straddles its threshold",
    "vacuous": "the control passes, too, so the test says nothing",
    "not measured": "a crash, a missing run or a NaN; it never counts as not replicated",
}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("papertrial.atlas"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "duration": duration, "kebab": lambda text: text.replace(" ", "-")}
    environment.globals |= {"VERDICTS": VERDICTS, "WHERE": WHERE, "MEANING": MEANING, "SCALES": SCALES, "SIGNS": SIGNS}
    return environment


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


def index(scale: str, records: Sequence[Record], cards: Mapping[str, Card], others: Sequence[str] = ()) -> str:
    """One row a claim, over all papers.

    Args:
        records: as in reports/<scale>/<chapter>/<slug>.json.
        others: the scales whose index stands beside this one.
    """
    rows = [row for record in records for row in _rows(record, cards[f"{record['chapter']}/{record['slug']}"])]
    chapters = {
        name: [list(claims) for _, claims in groupby(within, key=lambda row: row["slug"])]
        for name, within in groupby(rows, key=lambda row: row["chapter"])
    }
    return _render("index.html.j2", scale=scale, rows=rows, chapters=chapters, counts=_counts(rows), others=others)


def _rows(record: Record, card: Card) -> list[Record]:
    texts = {c.id: c.claim for c in card.claims}
    shared = {
        "slug": card.slug,
        "chapter": card.chapter,
        "title": card.title,
        "tier": card.tier or "",
        "data": card.data,
        "where": record["source"],
        "outdated": record["stale"] or record["card_moved"],
        "cost": record["cost"]["cpu_s"] if record["source"] != "none" else None,
        "when": record["when"],
    }
    return [
        {**shared, "id": c["id"], "claim": texts.get(c["id"], ""), "verdict": c["verdict"], "control": _control(c)}
        for c in record["claims"]
    ]


def _control(claim: Record) -> str:
    return claim["control"]["verdict"] if claim["control"] else ""


def _counts(claims: Sequence[Record]) -> dict[str, int]:
    """How many claims came to each verdict, none left out."""
    return {verdict: sum(c["verdict"] == verdict for c in claims) for verdict in VERDICTS}


def paper(card: Card, found: Record, **shown: Any) -> str:
    """A paper's page.

    Args:
        found: its record.
        shown: what else the template asks for: figures, provenances, models, trials, neighbours, elsewhere.
    """
    provenances = shown["provenances"]
    return _render(
        "page.html.j2",
        card=card,
        found=found,
        texts={c.id: c for c in card.claims},
        strips={c["id"]: strips(c) for c in found["claims"]},
        energy=_energy(provenances),
        libraries=_libraries(provenances),
        bibtex=bibtex(card),
        scale=found["scale"],
        recorded=paths.RECORDED,
        **shown,
    )


def _energy(provenances: Sequence[Record]) -> float | None:
    """Joules over all units, if each of them measured them."""
    joules = [p["cost"].get("energy_j") for p in provenances]
    return sum(joules) if joules and None not in joules else None


def _libraries(provenances: Sequence[Record]) -> list[str]:
    """Each set of library versions once."""
    told = {
        ", ".join(f"{name} {v}" for name, v in {"python": p["python"], **p["libraries"]}.items() if v): None
        for p in provenances
    }
    return list(told)


def bibtex(card: Card) -> str:
    """A BibTeX entry from what the card knows; arXiv has the authors."""
    title = re.sub(r"([&%#])", r"\\\1", card.title)
    fields = {"title": f"{{{title}}}", "year": card.year, "eprint": card.arxiv}
    if card.arxiv:
        fields |= {"archivePrefix": "arXiv", "url": f"https://arxiv.org/abs/{card.arxiv}"}
    lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items() if value)
    return f"@misc{{{card.slug},\n{lines}}}"


def across(
    scale: str,
    views: Sequence[Record],
    waiting: Sequence[str],
    testbeds: Mapping[str, Sequence[Record]],
    comparisons: Mapping[str, Sequence[Record]],
    cards: Mapping[str, Card],
) -> str:
    """The page of what papers show together.

    Args:
        views: as ``views.draw`` returns them.
        waiting: titles of the views for which nothing has run.
        testbeds: {testbed: the records of the papers on it}.
        comparisons: {testbed: as ``ground.comparisons`` returns them}.
    """
    claims = {
        name: [row for record in records for row in _rows(record, cards[f"{record['chapter']}/{record['slug']}"])]
        for name, records in testbeds.items()
    }
    counts = {name: _counts(rows) for name, rows in claims.items()}
    titles = {paper: card.title for paper, card in cards.items()}
    return _render(
        "across.html.j2",
        scale=scale,
        views=views,
        waiting=waiting,
        claims=claims,
        counts=counts,
        comparisons=comparisons,
        titles=titles,
    )
