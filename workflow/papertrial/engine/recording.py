"""make record: from finished laptop-scale runs to the small tables in git."""

import os
from datetime import UTC, datetime

from papertrial.engine import judge, record
from papertrial.engine.errors import PapertrialError
from papertrial.engine.plans import Planner

SCALE = "laptop"


def record_all(planner: Planner) -> None:
    """Record every selected paper whose units are all there, and say which ones are not.

    Raises:
        PapertrialError: extra seeds are configured; a verdict reached by adding seeds is never recorded.
    """
    if planner.project.config.extra_seeds:
        raise PapertrialError("config/config.yaml: extra_seeds must be 0 to record; added seeds are never recorded")
    for paper in planner.project.selected:
        plan = planner.paper(SCALE, paper)
        unfinished = [name for name, u in plan["units"].items() if not os.path.isdir(u["path"])]
        if len(unfinished) == len(plan["units"]):
            continue
        if unfinished:
            print(f"{paper}: not recorded, {', '.join(unfinished)} hasn't finished")
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
            continue
        found["recorded_on"] = datetime.now(UTC).date().isoformat()
        record.write(paper, found, evidence.rows, plan["cells"])
        print(f"{paper}: " + ", ".join(f"{c['id']} {c['verdict']}" for c in found["claims"]))
