"""A made-up site: cards and records of any number of papers, with every verdict and hostile words among them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from papertrial.atlas import pages
from papertrial.engine.cards import Card
from papertrial.engine.verdicts import VERDICTS

SKELETON = Path(pages.__file__).parents[1] / "engine/skeleton/card.yaml"
CHAPTERS = ("alignment", "convex", "decisions", "diffusion", "foundations", "physics")
HOSTILE = """<script>alert("claim")</script> & <b onclick='x'>"quoted"</b>"""


TOY = Card.model_validate(yaml.safe_load(SKELETON.read_text()) | {"slug": "toy", "chapter": "convex"})


def card(slug: str, chapter: str = "convex", claims: int = 4, **changes) -> Card:
    """The skeleton's card under another name, with several claims."""
    (first,) = TOY.claims
    said = [{"id": f"c{i + 1}", "claim": f"Claim {i + 1} of {slug}: {first.claim}"} for i in range(claims)]
    made = [first.model_copy(update=words) for words in said]
    return TOY.model_copy(update={"slug": slug, "chapter": chapter, "claims": made, **changes})


def criterion(estimate=4.0, low=3.2, high=5.1, op=">", threshold=3.0, passed=True, name="mean ratio of iterations"):
    return {
        "name": name, "estimate": estimate, "low": low, "high": high, "op": op, "threshold": threshold,
        "n": 10, "passed": passed, "kind": "interval",
    }  # fmt: skip


CRITERIA = {
    "replicated": criterion(),
    "not replicated": criterion(2.0, 1.5, 2.6, passed=False),
    "inconclusive": criterion(3.3, 2.6, 4.0, passed=None),
    "vacuous": criterion(40.0, 30.0, 55.0),
}


def record(card: Card, place: int = 0, source: str = "run") -> dict:
    """A record of a card, its claims' verdicts turning through all five."""
    claims = []
    for i, claim in enumerate(card.claims):
        verdict = VERDICTS[(place + i) % 5]
        criteria = [CRITERIA[verdict]] if verdict in CRITERIA else []
        broken = criterion(2000.0, 1500.0, 2500.0) if verdict == "vacuous" else criterion(1.0, 0.9, 1.1, passed=False)
        outcome = {"vacuous": "replicated", "not measured": "not measured"}.get(verdict, "not replicated")
        control = {
            "method": "no-momentum", "stands_for": "momentum", "verdict": outcome,
            "criteria": [broken] if criteria else [], "reason": None,
        }  # fmt: skip
        claims.append(
            {
                "id": claim.id, "verdict": verdict, "criteria": criteria, "control": control, "controls": [control],
                "further_seeds": 12 if verdict == "inconclusive" else None, "deviation": claim.deviation,
                "reason": None if criteria else "ZeroDivisionError: " + HOSTILE,
            }
        )  # fmt: skip
    return {
        "slug": card.slug, "chapter": card.chapter, "scale": "laptop", "card_sha256": "0" * 64, "commit": "f" * 40,
        "fingerprints": {"all": "0" * 12}, "modules": {}, "claims": claims, "missing": [],
        "cost": {"cpu_s": 3.0 * (place % 200) + 0.5, "wall_s": 9.0, "peak_mb": 120.0}, "recorded_on": None,
        "stale": False, "moved": [], "card_moved": False, "agreement": None, "source": source,
        "when": f"2024-{1 + place % 12:02}-{1 + place % 28:02}", "inputs": "0" * 12,
    }  # fmt: skip


PROVENANCE = {
    "artifact": "data/runs/laptop/convex/x/all@000000000000", "commit": "f" * 40, "python": "3.11", "device": "cpu",
    "libraries": {"numpy": "2.4"}, "threads": 1, "machine": "x86_64", "start": "2026-01-01T00:00:00+00:00",
    "cost": {"cpu_s": 1.0, "wall_s": 1.0, "peak_mb": 100.0},
}  # fmt: skip


class Site:
    """A made-up site on disk."""

    def __init__(self, folder: Path, papers: int, claims: int = 4) -> None:
        self.folder = folder
        sources = ("run", "recorded", "pulled", "none")
        made = [card(f"paper-{i:03}", CHAPTERS[i * len(CHAPTERS) // papers], claims, testbed=f"bed-{i // 3}")
                for i in range(papers)]  # fmt: skip
        made[0] = hostile(made[0])
        self.cards = {f"{c.chapter}/{c.slug}": c for c in made}
        self.records = [record(c, i, sources[i % 4]) for i, c in enumerate(made)]

    def index(self) -> str:
        return pages.index("laptop", self.records, self.cards)

    def paper(self, place: int = 0, **changes) -> str:
        figure = {
            "title": "Ratios " + HOSTILE, "caption": "Look " + HOSTILE, "alt": "Dots " + HOSTILE, "file": "ratios.svg",
            "reason": None, "data": ["results.csv"],
        }  # fmt: skip
        found = self.records[place]
        kin = [{"paper": p, "title": c.title, "shared": ["testbed bed-0"]} for p, c in list(self.cards.items())[1:3]]
        shown = {
            "figures": [figure], "provenances": [PROVENANCE], "models": {}, "neighbours": kin, "elsewhere": [],
            "trials": [{"problem": HOSTILE, "method": "m", "settings": "{}", "metric": "loss", "value": 1.0,
                        "chosen": True}],
        }  # fmt: skip
        return pages.paper(self.cards[f"{found['chapter']}/{found['slug']}"], found, **shown | changes)

    def across(self) -> str:
        beds = {"bed-0": self.records[:3]}
        held = {"bed-0": [{"problem": "quadratic", "metric": "iterations", "methods": ("a", HOSTILE),
                           "papers": tuple(self.cards)[:2], "agree": 3, "contradict": 1, "open": 0}]}  # fmt: skip
        return pages.across("laptop", [], ["Samplers"], beds, held, self.cards)

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "index.html").write_text(self.index())
        (self.folder / "across.html").write_text(self.across())
        for name in ("atlas.json", "atlas.schema.json"):
            (self.folder / name).write_text("{}")
        for place, (paper, made) in enumerate(list(self.cards.items())[:3]):
            file = self.folder / f"{paper}.html"
            file.parent.mkdir(exist_ok=True)
            file.write_text(self.paper(place))
            file.with_suffix(".json").write_text("{}")
            file.with_suffix("").mkdir(exist_ok=True)
            (file.with_suffix("") / "results.csv").write_text("seed\n0\n")
            svg = '<svg xmlns="http://www.w3.org/2000/svg" width="90" height="90"><circle r="9" cx="9" cy="9"/></svg>'
            (file.with_suffix("") / "ratios.svg").write_text(svg)
            assert made.slug == file.stem


def hostile(made: Card) -> Card:
    """The same card with words everywhere that would be markup if they weren't escaped."""
    claims = [c.model_copy(update={k: f"{getattr(c, k)} {HOSTILE}" for k in ("claim", "paper", "measure")}
                           | {"deviation": HOSTILE}) for c in made.claims]  # fmt: skip
    method = made.methods["momentum"].model_copy(update={"label": HOSTILE, "settings": {"x": HOSTILE}})
    texts = {k: f"{getattr(made, k) or ''} {HOSTILE}" for k in ("title", "summary", "scale_gap", "tried", "deviation")}
    changed = {**texts, "claims": claims, "details": [HOSTILE], "methods": {**made.methods, "momentum": method}}
    return made.model_copy(update=changed)


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Site:
    """1,000 claims of 250 papers."""
    made = Site(tmp_path_factory.mktemp("site") / "laptop", 250)
    made.write()
    return made


@pytest.fixture
def make() -> SimpleNamespace:
    """What makes up single cards and criteria."""
    return SimpleNamespace(card=card, criterion=criterion)
