"""The atlas: judges every paper that moved, draws its page, and writes the index, what papers show together, and
the machine-readable twin of it all.

Why Jinja2 alone, and no Sphinx or MkDocs: every page comes from the same few typed records, none from prose, so a
documentation generator would only be handed finished HTML; and it would rebuild, or at least read again, all pages
where here one page's inputs decide over that page. The interactive table is ours for the same reason: of what the
index needs (facets with counts that add up, state in the address, a plain table without JavaScript) DataTables,
the best kept component, does the text search and the sorting. That is thirty lines of templates/table.js; for
them a reader would load 123 kB, and wait for a thousand rows to be rebuilt (0.3 s against 0.02 s measured).
"""

import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from papertrial.atlas import ground, pages
from papertrial.atlas.neighbours import holders, neighbours
from papertrial.atlas.views import VIEWS
from papertrial.engine import artifacts, fingerprints, judge, paths, record
from papertrial.engine.cards import SCALES, Card, Scale
from papertrial.engine.errors import PapertrialError
from papertrial.engine.evidence import Evidence
from papertrial.engine.plans import Plan, Planner, needed_paths
from papertrial.engine.project import Project
from papertrial.engine.versions import pulled

Record = dict[str, Any]
SCHEMA = Path(__file__).with_name("schema.json")
FEW = 4  # papers to draw from which on a second process pays
NOTHING: Record = {
    "evidence": None,
    "recorded_on": None,
    "stale": False,
    "moved": [],
    "card_moved": False,
    "agreement": None,
    "missing": [],
}


def build(planner: Planner, scale: Scale, papers: Iterable[str], cores: int = 0) -> Path:
    """Judge and draw the given papers where they moved, then what stands over all papers of the project."""
    everything = planner.project.papers
    never = [p for p in everything if _read(_file(scale, p)) is None]
    update_all(planner, scale, sorted({*papers, *never}), cores)
    records = [_read(_file(scale, paper)) for paper in everything]
    cards = cards_of(planner.project)
    target = paths.REPORTS / scale
    across(scale, records, cards)
    published = [_published(r, cards[f"{r['chapter']}/{r['slug']}"]) for r in records]
    atlas = {"$schema": "atlas.schema.json", "scale": scale, "papers": published, "engine": _engine(cores)}
    _write(target / "atlas.schema.json", SCHEMA.read_text(encoding="utf-8"))
    _write(target / "atlas.json", json.dumps(atlas, indent=1, ensure_ascii=False) + "\n")
    others = [s for s in SCALES if s != scale and (paths.REPORTS / s / "index.html").exists()]
    _write(target / "index.html", pages.index(scale, records, cards, others))
    return target / "index.html"


def update_all(planner: Planner, scale: Scale, papers: Sequence[str], cores: int = 0) -> None:
    """Judge and draw the papers that moved, in several processes where there are enough of them."""
    moved = [p for p in papers if _current(planner, scale, p)[0] is None]
    workers = min(cores or len(os.sched_getaffinity(0)), len(moved) // 2) if sys.platform == "linux" else 1
    if workers < 2 or len(moved) < FEW:
        for paper in moved:
            update(planner, scale, paper)
        return
    from papertrial.atlas import figures  # noqa: F401  imported once, before the fork

    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, fork, initializer=_adopt, initargs=(planner, scale)) as pool:
        for _ in pool.map(_update_adopted, moved, chunksize=max(1, min(8, len(moved) // (4 * workers)))):
            pass


_adopted: dict[str, Any] = {}


def _adopt(planner: Planner, scale: Scale) -> None:
    _adopted.update(planner=planner, scale=scale)


def _update_adopted(paper: str) -> None:
    update(_adopted["planner"], _adopted["scale"], paper)


def update(planner: Planner, scale: Scale, paper: str) -> Record:
    """Judge and draw one paper if something that it shows has moved since it was last drawn."""
    old, kin = _current(planner, scale, paper)
    if old is not None:
        return old
    card, plan = planner.project.card(paper), planner.paper(scale, paper)
    found = _judged(card, plan, paper)
    found["inputs"] = _inputs(plan, paper, scale, kin)  # judging may have set a damaged artifact aside
    evidence = found.pop("evidence")
    file = _file(scale, paper)
    _write(file.with_suffix(".html"), _page(card, plan, found, evidence, kin))
    _write(file, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return found


def _current(planner: Planner, scale: Scale, paper: str) -> tuple[Record | None, list[Record]]:
    """The paper's record as last drawn if nothing that it shows has moved since, and its neighbours."""
    planner.project.card(paper)  # a broken card is told before anything else
    kin = neighbours(paper, cards_of(planner.project), _ground_of(planner.project))
    file = _file(scale, paper)
    old = _read(file)
    same = old is not None and old["inputs"] == _inputs(planner.paper(scale, paper), paper, scale, kin)
    return (old if same and file.with_suffix(".html").exists() else None), kin


@cache
def cards_of(project: Project) -> dict[str, Card]:
    """{paper: its card}, of every paper whose card is valid; a broken one must not stop another paper's page."""
    found = {}
    for paper in project.papers:
        with suppress(PapertrialError):
            found[paper] = project.card(paper)
    return found


@cache
def _ground_of(project: Project) -> dict[str, list[str]]:
    return holders(cards_of(project))


def _page(card: Card, plan: Plan, found: Record, evidence: Evidence | None, kin: list[Record]) -> str:
    """The page's HTML; its figures and tables go to the folder beside it."""
    folder = _file(plan["scale"], plan["paper"]).with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    drawn = []
    if evidence is not None:
        from papertrial.atlas.figures import draw

        folder.mkdir(parents=True)
        drawn = draw(card, evidence, folder)
    has_trials = evidence is not None and not evidence.trials.empty
    return pages.paper(
        card,
        found,
        figures=drawn,
        trials=evidence.trials.to_dict("records") if has_trials else [],
        provenances=[artifacts.provenance(u["path"]) for u in plan["units"].values() if os.path.isdir(u["path"])],
        models={
            name: [_gates(p) for p in parts.values() if os.path.isdir(p)]
            for needs in ("needs", "shared")
            for name, parts in plan[needs]["models"].items()
        },
        neighbours=kin,
        elsewhere=[s for s in SCALES if s != plan["scale"] and _file(s, plan["paper"]).exists()],
    )


def _gates(path: str) -> Record:
    told = artifacts.provenance(path)
    return {"path": path, "gates": told.get("gates", []), "cost": told["cost"]}


def _judged(card: Card, plan: Plan, paper: str) -> Record:
    """The paper's record and evidence: from what ran here, else as recorded, else empty."""
    evidence, missing = judge.gather(plan)
    recorded = record.read(paper) if plan["scale"] == "laptop" else None
    failed = any(paths.failure(u["path"]).exists() for u in plan["units"].values())
    present = {u["path"] for u in plan["units"].values() if os.path.isdir(u["path"])}
    if not present and recorded and not failed:  # a shared baseline may lie here all the same
        found, rows = recorded
        stale = found["fingerprints"] != {n: u["fingerprint"] for n, u in plan["units"].items()}
        return {
            **NOTHING,
            **found,
            "source": "recorded",
            "when": found["recorded_on"],
            "stale": stale,
            "moved": record.moved(found, plan) if stale else [],
            "card_moved": found["card_sha256"] != record.card_sha256(card),
            "evidence": Evidence(rows.assign(shared=False)) if not rows.empty else None,
        }
    found = judge.judge(card, plan, evidence, missing)
    source = "pulled" if present and present <= pulled(present) else "run" if present or failed else "none"
    agreement = None
    if recorded and evidence is not None:
        agreement = record.compare(evidence.rows, recorded[1], plan["cells"])
    starts = [artifacts.provenance(path)["start"][:10] for path in present]
    when = max(starts, default=None)
    return {**NOTHING, **found, "source": source, "when": when, "agreement": agreement, "evidence": evidence}


def _inputs(plan: Plan, paper: str, scale: str, kin: list[Record]) -> str:
    units = [u["path"] for u in plan["units"].values()]
    shown = [*units, *needed_paths(plan["needs"]), *needed_paths(plan["shared"])]
    state = {p: [os.path.isdir(p), paths.failure(p).exists()] for p in shown}
    came = sorted(pulled(units))
    elsewhere = [s for s in SCALES if _file(s, paper).exists() and s != scale]
    return fingerprints.digest([plan["page"], state, came, kin, elsewhere])


def across(scale: Scale, records: Sequence[Record], cards: dict[str, Card]) -> None:
    """Draw what papers show together, if one of their records moved."""
    target = paths.REPORTS / scale
    folder, told = target / "across", target / "across.json"
    # A page's own inputs hold the hash of the atlas's code, too.
    inputs = fingerprints.digest([[r["chapter"], r["slug"], r["inputs"]] for r in records])
    if (_read(told) or {}).get("inputs") == inputs and (target / "across.html").exists():
        return
    from papertrial.atlas import views

    tables = views.read_tables(cards, target)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = {view: views.table(view, tables, cards) for view in VIEWS}
    drawn = [views.draw(view, found, folder) for view, found in rows.items() if not found.empty]
    testbeds = ground.common_testbeds(records, cards)
    held = {
        name: ground.comparisons({p: tables[p] for p in map(_paper, papers) if p in tables}, cards)
        for name, papers in testbeds.items()
    }
    waiting = [view.title for view, found in rows.items() if found.empty]
    _write(target / "across.html", pages.across(scale, drawn, waiting, testbeds, held, cards))
    _write(told, json.dumps({"inputs": inputs, "views": drawn, "comparisons": held}, indent=1) + "\n")


def _published(found: Record, card: Card) -> Record:
    """A record with what names and places it, for readers that have no cards."""
    texts = {c.id: {"claim": c.claim, "paper": c.paper, "replicated_if": c.replicated_if} for c in card.claims}
    claims = [{**texts.get(c["id"], {}), **c} for c in found["claims"]]
    about = {"title": card.title, "tier": card.tier, "data": card.data, "page": f"{card.chapter}/{card.slug}.html"}
    return {**about, **found, "claims": claims}


def _paper(found: Record) -> str:
    return f"{found['chapter']}/{found['slug']}"


def _file(scale: str, paper: str) -> Path:
    return paths.REPORTS / scale / f"{paper}.json"


def _read(file: Path) -> Record | None:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


def _engine(cores: int) -> Record:
    """What the engine itself cost in the run that ends with this atlas."""
    started = os.environ.get("PAPERTRIAL_STARTED")
    if not started:
        return {"wall_s": None, "compute_cpu_s": None, "cores": None}
    since = datetime.fromtimestamp(float(started), UTC).isoformat(timespec="seconds")
    fresh = [
        json.loads(file.read_text())
        for file in Path("data").glob("*/**/" + artifacts.PROVENANCE)
        if file.stat().st_mtime >= float(started)
    ]
    spent = sum(p["cost"]["cpu_s"] for p in fresh if p["start"] >= since)
    return {
        "wall_s": round(time.time() - float(started), 2),
        "compute_cpu_s": round(spent, 2),
        "cores": cores or None,
    }
