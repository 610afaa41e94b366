"""make record: from finished laptop-scale runs to the small tables in git."""

import json
import os
from datetime import UTC, datetime

from papertrial.engine import fingerprints, judge, paths, record
from papertrial.engine.errors import PapertrialError
from papertrial.engine.plans import Plan, Planner

SCALE = "laptop"
SEEN = paths.SCRATCH / "recorded.json"  # {paper: what its record was last found to follow from}


def record_all(planner: Planner) -> None:
    """Record every selected paper whose units are all there, and say which ones are not.

    Raises:
        PapertrialError: extra seeds are configured; a verdict reached by adding seeds is never recorded.
    """
    if planner.project.config.extra_seeds:
        raise PapertrialError("config/config.yaml: extra_seeds must be 0 to record; added seeds are never recorded")
    seen = _seen()
    for paper in planner.project.selected:
        plan = planner.paper(SCALE, paper)
        unfinished = [name for name, u in plan["units"].items() if not os.path.isdir(u["path"])]
        if len(unfinished) == len(plan["units"]):
            continue
        if unfinished:
            print(f"{paper}: not recorded, {', '.join(unfinished)} hasn't finished")
            continue
        if seen.get(paper) == _stamp(paper, plan):  # judging 222 papers again takes a minute
            print(f"{paper}: as recorded")
            continue
        card = planner.project.card(paper)
        evidence, missing = judge.gather(plan)
        if missing or evidence is None:
            print(f"{paper}: not recorded, {'; '.join(missing)}")
            continue
        found = judge.judge(card, plan, evidence, missing)
        old = record.read(paper)
        if old and old[0]["fingerprints"] == found["fingerprints"] and old[0]["claims"] == found["claims"]:
            print(f"{paper}: as recorded")
        else:
            found["recorded_on"] = datetime.now(UTC).date().isoformat()
            record.write(paper, found, evidence.rows, plan["cells"])
            print(f"{paper}: " + ", ".join(f"{c['id']} {c['verdict']}" for c in found["claims"]))
        seen[paper] = _stamp(paper, plan)
    SEEN.parent.mkdir(parents=True, exist_ok=True)
    SEEN.write_text(json.dumps(seen, indent=1) + "\n")


def _seen() -> dict[str, str]:
    try:
        return json.loads(SEEN.read_text())
    except (OSError, ValueError):
        return {}


def _stamp(paper: str, plan: Plan) -> str:
    """Hash of all that a record follows from, and of the record: units, card, evidence, what judges."""
    units = [u["path"] for u in plan["units"].values()]
    page = {key: value for key, value in plan["page"].items() if key != "recorded"}
    files = [(paths.RECORDED / f"{paper}{end}") for end in (".json", ".csv")]
    return fingerprints.digest([units, plan["shared"], page, [f.read_text() if f.exists() else None for f in files]])
