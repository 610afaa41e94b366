"""What Slurm costs: jobs per minute against a local run, for the six trials at smoke scale. Prints, judges nothing.

    python -m tests.cluster.measure         # in the project's root, as root on Debian; on a quiet machine

Every row runs the same computation, cut into one job a paper or one job a method; data sets and base models lie ready.
Before, what a job's own Snakemake costs, here and with 222 papers.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from benchmarks.engine import simulate
from tests.cluster import slurm
from tests.cluster.conftest import SITE
from tests.cluster.test_trials import CHOSEN, PAPERS, copy_of_this_checkout
from tests.conftest import Checkout

CORES = os.cpu_count()
SLURM = ["--workflow-profile", "profiles/slurm", *SITE]
WAYS = {"local": ["--cores", f"{CORES}"], "Slurm": SLURM, "Slurm, arrays": [*SLURM, "--slurm-array-jobs", "unit"]}


def snakemake(checkout: Checkout, *arguments: str) -> float:
    """CPU seconds of one call and what it waited for; on Slurm, of the submitting process."""
    before = os.times()
    done = checkout.run(sys.executable, "-m", "snakemake", *arguments, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def jobs_own_snakemake(checkout: Checkout) -> float:
    """CPU seconds of one of the two Snakemakes that a Slurm job starts, without what it runs."""
    snakemake(checkout, "-n")
    plan = next((checkout.path / "data/scratch/plan/smoke").glob("*/*.json"))
    unit = next(iter(json.loads(plan.read_text())["units"].values()))["path"]
    return snakemake(checkout, "-n", "--mode", "remote", "--allowed-rules", "unit", "--force", "--nolock", unit)


def cut(checkout: Checkout, units: str) -> None:
    """Cut every trial's smoke scale anew; what runs stays the same."""
    for paper in PAPERS:
        card = checkout.path / f"config/papers/{paper}.yaml"
        data = yaml.safe_load(card.read_text())
        data["scales"]["smoke"]["units"] = units
        card.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def throughput(checkout: Checkout, units: str, way: str) -> str:
    for made in ("data/runs", "reports"):
        shutil.rmtree(checkout.path / made, ignore_errors=True)
    start = time.perf_counter()
    snakemake(checkout, *CHOSEN, *WAYS[way])
    wall = time.perf_counter() - start
    jobs = list((checkout.path / "data/runs").glob("smoke/*/*/*@*/provenance.json"))
    compute = sum(json.loads(job.read_text())["cost"]["cpu_s"] for job in jobs)
    return f"{units:8} {way:14} {len(jobs):4} {compute:8.0f} {wall:7.0f} {60 * len(jobs) / wall:9.1f}"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="papertrial-measure-") as name:
        checkout, many = copy_of_this_checkout(Path(name) / "checkout"), Path(name) / "many"
        print(f"{CORES} cores; load {os.getloadavg()[0]:.1f} before")
        print(f"a job's own Snakemake: {jobs_own_snakemake(checkout):.2f} CPU s, twice in every Slurm job")
        many.mkdir()
        simulate(many, 222)
        print(f"the same with 222 simulated papers: {jobs_own_snakemake(Checkout(many)):.2f} CPU s")
        snakemake(checkout, *CHOSEN, *WAYS["local"])  # data sets and base models
        print(f"{'units':8} {'way':14} {'jobs':>4} {'CPU s':>8} {'wall s':>7} {'jobs/min':>9}")
        with slurm.running():
            for units in ("paper", "method"):
                cut(checkout, units)
                for way in WAYS:
                    print(throughput(checkout, units, way), flush=True)
        print(f"load {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    try:
        main()
    except (slurm.Impossible, subprocess.SubprocessError) as error:
        sys.exit(str(error))
