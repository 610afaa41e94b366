"""Judge a paper: from the artifacts of its plan to the record of its claims."""

import importlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from papertrial.engine import artifacts, paths, verdicts
from papertrial.engine.cards import Card
from papertrial.engine.evidence import Evidence, claims_of
from papertrial.engine.plans import Plan
from papertrial.engine.record import card_sha256
from papertrial.engine.verdicts import NOT_MEASURED, VERDICTS, Criterion

Record = dict[str, Any]
# The control that comes closest to passing is the one that tells most about the test.
CLOSEST = ("replicated", "inconclusive", "not replicated", "not measured")


def gather(plan: Plan) -> tuple[Evidence | None, list[str]]:
    """A paper's results and what is missing: damaged artifacts are set aside, so that the next run makes them again.

    Returns:
        the evidence (None if no unit is there), and one sentence for every unit that isn't.
    """
    tables: dict[str, list[pd.DataFrame]] = {"results": [], "traces": [], "timings": [], "trials": []}
    state: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    missing = []
    for unit in plan["units"].values():
        reason = _read_unit(unit["path"], tables, state)
        if reason:
            missing.append(reason)
    for parts in plan["shared"]["models"].values():
        for path in parts.values():
            reason = _read_unit(path, tables, state, shared=True)
            if reason:
                missing.append(reason)
    if not tables["results"]:
        return None, missing

    def whole(name: str) -> pd.DataFrame:
        return pd.concat(tables[name], ignore_index=True) if tables[name] else pd.DataFrame()

    found = Evidence(whole("results"), whole("traces"), whole("timings"), state, whole("trials"))
    return found, missing


def _read_unit(path: str, tables: Mapping[str, list], state: dict, shared: bool = False) -> str | None:
    if not os.path.isdir(path):
        return _why_absent(path)
    try:
        read = {name: artifacts.table(path, name) for name in tables}
        arrays = artifacts.state(path) if not shared else {}
    except artifacts.Damaged as error:
        artifacts.quarantine(path)
        return f"{error} (set aside; the next run makes it again)"
    for name, table in read.items():
        if table is not None:
            tables[name].append(table.to_pandas().assign(shared=shared))
    for key, value in arrays.items():
        problem, method, name = key.split("/", 2)
        state.setdefault((problem, method), {})[name] = value
    return None


def _why_absent(path: str) -> str:
    try:
        return json.loads(paths.failure(path).read_text())["message"]
    except (OSError, ValueError, KeyError):
        return f"{path}: hasn't run, or was killed before it finished"


def judge(card: Card, plan: Plan, evidence: Evidence | None, missing: list[str]) -> Record:
    """The verdict on every claim of a paper, with criteria, controls and cost."""
    claims = []
    functions, broken = _judging_functions(card)
    for claim in card.claims:
        reason = "; ".join(missing) or broken
        if evidence is None and not reason:
            reason = "nothing has run"
        claims.append(_judge_claim(card, claim, functions.get(claim.id), evidence, reason))
    present = {name: u for name, u in plan["units"].items() if os.path.isdir(u["path"])}
    provenances = {name: artifacts.provenance(u["path"]) for name, u in present.items()}
    return {
        "slug": card.slug,
        "chapter": card.chapter,
        "scale": plan["scale"],
        "card_sha256": card_sha256(card),
        "commit": _commit(provenances),
        "fingerprints": {name: u["fingerprint"] for name, u in plan["units"].items()},
        "modules": plan["modules"],
        "claims": claims,
        "cost": _cost(provenances),
        "missing": missing,
    }


def _judging_functions(card: Card) -> tuple[dict, str]:
    try:
        return claims_of(importlib.import_module(f"{card.module}.evidence")), ""
    except Exception as error:  # whatever an evidence module does must not stop the other papers
        return {}, f"evidence.py can't be imported: {type(error).__name__}: {error}"


def _judge_claim(card: Card, claim: Any, judging: Any, evidence: Evidence | None, reason: str) -> Record:
    if judging is None and not reason:
        reason = f'evidence.py registers no @claim("{claim.id}")'
    criteria, reason = ([], reason) if reason else _criteria(judging, evidence)
    verdict = verdicts.verdict(criteria) if not reason else NOT_MEASURED
    controls = []
    for control, method in card.controls(claim.id).items():
        held, why = ([], reason) if reason else _criteria(judging, evidence.standing_in(control, method))
        outcome = NOT_MEASURED if why else verdicts.verdict(held)
        controls.append(
            {
                "method": control,
                "stands_for": method,
                "verdict": outcome,
                "criteria": [_plain(c) for c in held],
                "reason": why or None,
            }
        )
        verdict = verdicts.with_control(verdict, outcome)
    assert verdict in VERDICTS
    undecided = [c.further for c in criteria]
    return {
        "id": claim.id,
        "verdict": verdict,
        "criteria": [_plain(c) for c in criteria],
        "control": min(controls, key=lambda c: CLOSEST.index(c["verdict"])) if controls else None,
        "controls": controls,
        "further_seeds": max((n for n in undecided if n), default=None) if verdict == "inconclusive" else None,
        "deviation": claim.deviation,
        "reason": reason or None,
    }


def _criteria(judging: Any, evidence: Evidence) -> tuple[list[Criterion], str]:
    try:
        return list(judging(evidence)), ""
    except Exception as error:  # a crash is 'not measured', never 'not replicated'
        return [], f"{type(error).__name__}: {error}"


def _plain(criterion: Criterion) -> Record:
    def number(x: float | None) -> float | None:
        return float(x) if x is not None and math.isfinite(x) else None

    row = asdict(criterion)
    return {k: number(v) if k in ("estimate", "low", "high", "threshold") else v for k, v in row.items()}


def _commit(provenances: Mapping[str, Record]) -> str | None:
    """The commit of the unit that ran last."""
    latest = max(provenances.values(), key=lambda p: p["start"], default=None)
    return latest["commit"] if latest else None


def _cost(provenances: Mapping[str, Record]) -> Record:
    costs = [p["cost"] for p in provenances.values()]
    return {
        "cpu_s": round(sum(c["cpu_s"] for c in costs), 2),
        "wall_s": round(sum(c["wall_s"] for c in costs), 2),
        "peak_mb": round(max((c["peak_mb"] for c in costs), default=0.0), 1),
    }
