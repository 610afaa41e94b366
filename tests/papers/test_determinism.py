"""One unit of every paper, run again, gives the same bytes: one thread, fixed seeds, no times inside artifacts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from papertrial.engine import artifacts

ROOT = Path(__file__).parents[2]
PAPERS = sorted(f"{p.parent.name}/{p.stem}" for p in (ROOT / "config/papers").glob("*/*.yaml"))
MEASURED = {"timings.parquet"}


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_a_unit_run_again_gives_the_same_bytes(paper, tmp_path):
    plan = ROOT / "data/scratch/plan/smoke" / f"{paper}.json"
    units = list(json.loads(plan.read_text())["units"].values()) if plan.exists() else []
    if not units or not (ROOT / units[0]["path"]).is_dir():
        pytest.skip("hasn't run at smoke scale here")
    (tmp_path / "data/scratch/plan/smoke" / paper).parent.mkdir(parents=True)
    (tmp_path / "data/scratch/plan/smoke" / f"{paper}.json").write_text(plan.read_text())
    for shared in ("config", "workflow", "data/datasets", "data/models"):
        if (ROOT / shared).exists():
            (tmp_path / shared).symlink_to(ROOT / shared)
    env = {**os.environ, "PYTHONPATH": str(ROOT / "workflow")}
    command = [sys.executable, "-m", "papertrial", "unit", units[0]["path"]]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, again = (kept(root / units[0]["path"]) for root in (ROOT, tmp_path))
    assert again == first


def kept(unit: Path) -> dict[str, str]:
    """{file: sha256} of what counts."""
    return {name: sha for name, sha in artifacts.provenance(unit)["files"].items() if name not in MEASURED}
