"""Real papers at smoke scale through Slurm, on its (fake) GPUs: the same numbers as on this machine, byte for byte."""

import shutil
import subprocess
from pathlib import Path

import pytest
from tests.cluster import slurm
from tests.cluster.conftest import numbers, on_slurm
from tests.conftest import ROOT, Checkout

pytestmark = pytest.mark.slow

PAPERS = (
    "decisions/streaming-bandits",
    "alignment/sppo",
    "diffusion/dpm-solver",
    "optimizers/lion-lyapunov",
    "trust/aranyani-fair-forests",
    "convex/sinkhorn-newton-sparse",
)
CHOSEN = ["--config", f"papers={' '.join(PAPERS)}"]


def copy_of_this_checkout(path: Path) -> Checkout:
    """This checkout's files, with the data sets that lie here; what has run here at smoke scale is taken as it is."""
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in files.stdout.splitlines():
        if (ROOT / name).is_file():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, path / name)
    for kind in ("datasets", "downloads", "models/smoke", *(f"runs/smoke/{paper}" for paper in PAPERS)):
        if (ROOT / "data" / kind).is_dir():
            shutil.copytree(ROOT / "data" / kind, path / "data" / kind, dirs_exist_ok=True)
    return Checkout(path)


def test_same_numbers_as_a_local_run(cluster: Path, tmp_path: Path):
    checkout = copy_of_this_checkout(tmp_path / "checkout")
    checkout.snakemake(*CHOSEN)
    here = numbers(checkout)
    for kind in ("runs", "models", "scratch"):
        shutil.rmtree(checkout.path / "data" / kind, ignore_errors=True)
    before = len(slurm.ended(cluster))
    run = on_slurm(checkout, *CHOSEN, "--set-resources", "unit:gpu=1", "base_model:gpu=1")
    try:
        assert run.wait(timeout=900) == 0, (checkout.path / "slurm.txt").read_text()
    finally:
        run.kill()
    there = numbers(checkout)
    jobs = slurm.ended(cluster)[before:]
    assert len({name.split("/")[-2] for name in there}) >= len(PAPERS)
    assert len(jobs) == len({Path(name).parent for name in there})  # one job a unit or part, nothing else on the nodes
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    assert there == {name: here[name] for name in there}  # older fingerprints may lie here, too
