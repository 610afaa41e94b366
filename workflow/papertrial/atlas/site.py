"""The atlas: judges every paper that moved, draws its page, and writes the index and its machine-readable twin."""

import json
import os
import time
from collections.abc import Iterable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from papertrial.atlas import pages
from papertrial.engine import artifacts, fingerprints, judge, paths, record
from papertrial.engine.cards import Card, Scale
from papertrial.engine.plans import Plan, Planner
from papertrial.engine.versions import pulled

Record = dict[str, Any]
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
    """Judge and draw the given papers, then the index over every paper of the project."""
    for paper in papers:
        update(planner, scale, paper)
    records = [_on_file(planner, scale, paper) for paper in planner.project.papers]
    target = paths.REPORTS / scale
    atlas = {"scale": scale, "papers": records, "engine": _engine(cores)}
    _write(target / "atlas.json", json.dumps(atlas, indent=1, ensure_ascii=False) + "\n")
    cards = {f"{r['chapter']}/{r['slug']}": planner.project.card(f"{r['chapter']}/{r['slug']}") for r in records}
    _write(target / "index.html", pages.index(scale, records, cards))
    return target / "index.html"


def update(planner: Planner, scale: Scale, paper: str) -> Record:
    """Judge and draw one paper if something that it shows has moved since it was last drawn."""
    card = planner.project.card(paper)
    plan = planner.paper(scale, paper)
    inputs = _inputs(plan, paper, scale)
    file = paths.REPORTS / scale / f"{paper}.json"
    old = _read(file)
    if old is not None and old["inputs"] == inputs and file.with_suffix(".html").exists():
        return old
    found = _judged(card, plan, paper)
    found["inputs"] = _inputs(plan, paper, scale)  # judging may have set a damaged artifact aside
    evidence = found.pop("evidence")
    html = pages.paper(card, plan, found, evidence, file.with_suffix(""))
    _write(file.with_suffix(".html"), html)
    _write(file, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return found


def _judged(card: Card, plan: Plan, paper: str) -> Record:
    """The paper's record: from what ran here, else as recorded, else empty."""
    evidence, missing = judge.gather(plan)
    recorded = record.read(paper) if plan["scale"] == "laptop" else None
    failed = any(paths.failure(u["path"]).exists() for u in plan["units"].values())
    if evidence is None and recorded and not failed:
        found, _ = recorded
        stale = found["fingerprints"] != {n: u["fingerprint"] for n, u in plan["units"].items()}
        return {
            **NOTHING,
            **found,
            "source": "recorded",
            "stale": stale,
            "moved": record.moved(found, plan) if stale else [],
            "card_moved": found["card_sha256"] != record.card_sha256(card),
        }
    found = judge.judge(card, plan, evidence, missing)
    present = {u["path"] for u in plan["units"].values() if os.path.isdir(u["path"])}
    source = "pulled" if present and present <= pulled() else "run" if present or failed else "none"
    agreement = None
    if recorded and evidence is not None:
        agreement = record.compare(evidence.rows, recorded[1], plan["cells"])
    return {**NOTHING, **found, "source": source, "agreement": agreement, "evidence": evidence}


def _inputs(plan: Plan, paper: str, scale: str) -> str:
    units = [u["path"] for u in plan["units"].values()]
    shown = [*units, *(p for parts in plan["shared"]["models"].values() for p in parts.values())]
    state = {p: [os.path.isdir(p), paths.failure(p).exists()] for p in shown}
    recorded = plan["page"]["recorded"]
    return fingerprints.digest([plan["page"], state, recorded, date.today().isoformat() if recorded else None])


def _on_file(planner: Planner, scale: Scale, paper: str) -> Record:
    """A paper's record as last drawn; drawn now if it never was."""
    return _read(paths.REPORTS / scale / f"{paper}.json") or update(planner, scale, paper)


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
