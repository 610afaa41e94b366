"""Plans: what the DAG and the jobs need to know, resolved once and written down.

A paper's plan is the only input of its page and of the atlas that goes by time, so it is rewritten when
its content changes or one of its units is missing, and left alone otherwise.
"""

import hashlib
import json
import os
import time
from functools import cache
from pathlib import Path
from typing import Any

from papertrial.engine import fingerprints, paths
from papertrial.engine.cards import AtScale, Card, Needs, Scale
from papertrial.engine.errors import PapertrialError, nearest
from papertrial.engine.models import ModelAtScale
from papertrial.engine.project import Project
from papertrial.engine.units import cut

Plan = dict[str, Any]


class Planner:
    """Makes plans for one project, each once, and writes them; with ``write=False`` reads those written before."""

    def __init__(self, project: Project, write: bool = True) -> None:
        self.project = project
        self._write = write
        self._papers: dict[tuple[str, str], Plan] = {}
        self._models: dict[tuple[str, str], Plan] = {}
        self._datasets: dict[str, Plan] = {}

    def paper(self, scale: Scale, paper: str) -> Plan:
        """Plan a paper's units at a scale and write the plan where it moved."""
        if (scale, paper) not in self._papers:
            if not self._write:
                self._papers[scale, paper] = read_plan(paths.paper_plan(scale, paper))
                return self._papers[scale, paper]
            card = self.project.card(paper)
            plan = self._plan_paper(card, scale, paper)
            missing = any(not os.path.isdir(u["path"]) for u in plan["units"].values())
            write_plan(paths.paper_plan(scale, paper), plan, renew=missing)
            self._papers[scale, paper] = plan
        return self._papers[scale, paper]

    def model(self, scale: Scale, name: str) -> Plan:
        if (scale, name) not in self._models:
            if not self._write:
                self._models[scale, name] = read_plan(paths.model_plan(scale, name))
                return self._models[scale, name]
            card = self.project.model(name)
            needs = self._needs(card.needs, scale, f"config/models/{name}.yaml")
            modules = _code(card.module, f"config/models/{name}.yaml")
            at = card.scales[scale]
            settings = {**card.settings, **at.settings}
            parts = {}
            for part in at.parts:
                fp = fingerprints.artifact(modules, {"part": part, **settings}, needed_paths(needs))
                parts[part] = {"fingerprint": fp, "path": paths.model(scale, name, part, fp)}
            plan = {
                "scale": scale,
                "name": name,
                "module": card.module,
                "modules": modules,
                "torch": fingerprints.imports("torch", modules),
                "settings": settings,
                "cells": card.cells,
                "gates": [g.model_dump() for g in card.gates],
                "needs": needs,
                "parts": parts,
                "resources": _resources(at),
            }
            write_plan(paths.model_plan(scale, name), plan)
            self._models[scale, name] = plan
        return self._models[scale, name]

    def dataset(self, name: str, asked_by: str = "config") -> Plan:
        if name not in self._datasets:
            module = f"papertrial.data.{name.replace('-', '_')}"
            modules = _code(module, asked_by)
            fp = fingerprints.artifact(modules, {}, [])
            self._datasets[name] = {"module": module, "fingerprint": fp, "path": paths.dataset(name, fp)}
            known = {k: v for k, v in _read_json(paths.dataset_plan()).items() if k != "written"} | self._datasets
            write_plan(paths.dataset_plan(), known)
        return self._datasets[name]

    def _plan_paper(self, card: Card, scale: Scale, paper: str) -> Plan:
        source = f"config/papers/{paper}.yaml"
        modules = _code(f"{card.module}.method", source)
        needs = self._needs(card.needs, scale, source)
        shared = self._needs(Needs(models=card.compares_with), scale, source)
        at = card.scales[scale]
        resources = _resources(at)
        units: dict[str, Plan] = {}
        for name, runs in cut(card, scale, self.project.config.extra_seeds).items():
            tuned_by = sorted({r["tuned_by"] for r in runs if r.get("tuned_by")})
            after = {t: units[t]["path"] for t in tuned_by}
            fp = fingerprints.artifact(modules, runs, needed_paths(needs) + [units[t]["fingerprint"] for t in tuned_by])
            path = paths.unit(scale, paper, name, fp)
            units[name] = {"fingerprint": fp, "path": path, "runs": runs, "after": after}
        return {
            "scale": scale,
            "paper": paper,
            "module": card.module,
            "modules": modules,
            "torch": fingerprints.imports("torch", modules),
            "cells": card.cells,
            "needs": needs,
            "shared": shared,
            "resources": resources,
            "units": units,
            "page": {
                "card": _file_hash(Path(source)),
                "evidence": fingerprints.code(f"{card.module}.evidence") if _has_evidence(card) else None,
                "templates": _templates(),
                "recorded": _file_hash(paths.RECORDED / f"{paper}.json"),
            },
        }

    def _needs(self, needs: Needs, scale: Scale, asked_by: str) -> Plan:
        datasets = {d: self.dataset(d, asked_by)["path"] for d in needs.datasets}
        models: dict[str, dict[str, str]] = {}
        for asked in needs.models:
            name, _, part = asked.partition("/")
            parts = {k: p["path"] for k, p in self.model(scale, name)["parts"].items()}
            if part and part not in parts:
                raise PapertrialError(
                    f"{asked_by}: {name} has no part '{part}' at {scale} scale; {nearest(part, parts)}"
                )
            models.setdefault(name, {}).update({part: parts[part]} if part else parts)
        return {"datasets": datasets, "models": models}


def _resources(at: AtScale | ModelAtScale) -> dict[str, int]:
    return {"mem_mb": at.mem_mb, "runtime": at.runtime, "gpu": at.gpu, "per_gpu": at.per_gpu}


def needed_paths(needs: Plan) -> list[str]:
    """The artifacts that ``needs`` names; their paths carry their fingerprints."""
    return [*needs["datasets"].values(), *(p for parts in needs["models"].values() for p in parts.values())]


def absent(paths_: list[str]) -> list[str]:
    """What has to be made: whatever exists is up to date, since its path carries its fingerprint."""
    return [p for p in paths_ if not os.path.isdir(p)]


def write_plan(path: Path, plan: Plan, renew: bool = False) -> None:
    """Write atomically if the content moved; ``renew`` makes it new even where it didn't.

    A plan carries the time it was written: Snakemake passes over an input whose time moved and whose checksum
    didn't.
    """
    old = _read_json(path)
    if not renew and {**old, "written": None} == {**plan, "written": None}:
        return
    text = json.dumps({**plan, "written": time.time_ns()}, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def read_plan(path: Path) -> Plan:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise PapertrialError(f"{path}: no such plan; ask for it through snakemake, or run 'papertrial plan'") from None
    except ValueError:
        raise PapertrialError(f"{path}: this plan is damaged; delete it and run snakemake again") from None


def moved(modules: dict[str, str]) -> list[str]:
    """The modules whose code is not what it was when the plan was made."""
    return sorted(m for m, h in modules.items() if not _same(m, h))


def _same(module: str, expected: str) -> bool:
    try:
        return fingerprints.code_hash(module) == expected
    except (OSError, SyntaxError):
        return False


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


@cache
def _code(module: str, asked_by: str) -> dict[str, str]:
    try:
        return fingerprints.code(module)
    except ModuleNotFoundError:
        source = fingerprints.source_of(module)
        raise PapertrialError(f"{asked_by} asks for {module}, but there is no {source}") from None
    except SyntaxError as error:
        raise PapertrialError(f"{error.filename or module}: line {error.lineno}: {error.msg}") from None


def _has_evidence(card: Card) -> bool:
    return fingerprints.source_of(f"{card.module}.evidence").exists()


def _file_hash(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.exists() else None


@cache
def _templates() -> str:
    """What draws the pages: the atlas's code and templates, and what judges."""
    package = fingerprints.PACKAGE
    files = sorted([*(package / "atlas").rglob("*.*"), *(package / "engine").glob("*.py")])
    hashes = [hashlib.sha256(f.read_bytes()).hexdigest() for f in files if "__pycache__" not in f.parts]
    return fingerprints.digest(hashes)
