"""What versioned artifacts cost: prints the measures, judges nothing.

    python benchmarks/versions.py                # 222 simulated papers, five units each
    python benchmarks/versions.py --papers 6

Snapshot, a snapshot with nothing new, restore into a fresh clone beside DVC's own pull into one, planning on the
restored tree, all pages from what was restored. Beside it what rules that go by modification time pay for the same
pull: how many finished units they plan again, and what touching everything costs. Wall seconds mean little on a busy
machine, so every line has its CPU seconds and the load at its end.
"""

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from engine import ENVIRONMENT, ROOT, simulate

LAPTOP = ("--config", "scale=laptop")
METHODS = ("descent-a", "descent-b")  # two more baselines make five units a paper
RUN_ALL = """
from papertrial.engine.config import load_config
from papertrial.engine.plans import Planner
from papertrial.engine.project import Project
from papertrial.engine.runner import make_unit

planner = Planner(Project(load_config()))
for paper in planner.project.papers:
    for unit in planner.paper("laptop", paper)["units"].values():
        make_unit(unit["path"], "cpu")
"""
MTIME = """
from pathlib import Path

FIRST, *UNITS = sorted(map(str, Path("data/runs/laptop").glob("*/*/*/results.parquet")))

rule all:
    input: [u for u in UNITS if "/paper-0/" not in u]

rule unit:
    input: FIRST
    output: "data/runs/laptop/simulated/paper-{n}/{unit}/results.parquet"
    wildcard_constraints: n="[1-9][0-9]*"
    shell: "false"
"""


class Clock:
    """Runs commands in a folder and prints what they took."""

    def __init__(self, site: Path) -> None:
        self.env = {**ENVIRONMENT, "DVC_SITE_CACHE_DIR": str(site), "OMP_NUM_THREADS": "1"}

    def run(self, folder: Path, *command: str) -> str:
        """What a command said."""
        env = {**self.env, "PYTHONPATH": str(folder / "workflow")}
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def time(self, what: str, folder: Path, *command: str) -> str:
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        said = self.run(folder, *command)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{what:<58} {wall:7.1f} s {cpu:7.1f} CPU s   load {os.getloadavg()[0]:.1f}", flush=True)
        return said

    def python(self, what: str, folder: Path, *arguments: str) -> str:
        return self.time(what, folder, sys.executable, "-m", *arguments)


def prepare(clock: Clock, origin: Path, papers: int) -> int:
    """A checkout of simulated papers with their results; how many units it has."""
    origin.mkdir()
    simulate(origin, papers)
    for card in (origin / "config/papers/simulated").glob("*.yaml"):
        line = '  descent: {role: baseline, label: "gradient descent"}\n'
        more = "".join(line.replace("descent:", f"{name}:") for name in METHODS)
        text = card.read_text().replace(line, line + more)
        card.write_text(text.replace("dimension: 50, kappa: 1000", "dimension: 10, kappa: 100"))
    for file in (origin / "workflow/papertrial/papers/simulated").glob("*/method.py"):
        line = '"no-momentum": optimal_descent'
        more = "".join(f', "{name}": optimal_descent' for name in METHODS)
        file.write_text(file.read_text().replace(line, line + more))
    for item in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore"):
        (origin / item).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / item, origin / item)
    git(clock, origin, "init", "-q")
    git(clock, origin, "add", "-A")
    git(clock, origin, "commit", "-qm", "papers")
    clock.time("running the units, one process", origin, sys.executable, "-c", RUN_ALL)
    return len(list(origin.glob("data/runs/laptop/*/*/*@*")))


def git(clock: Clock, folder: Path, *arguments: str) -> None:
    clock.run(folder, "git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", *arguments)


def fresh(clock: Clock, origin: Path, clone: Path, link: str) -> None:
    shutil.rmtree(clone, ignore_errors=True)
    git(clock, origin, "clone", "-q", str(origin), str(clone))
    clock.run(clone, sys.executable, "-m", "dvc", "config", "--local", "cache.type", link)


def planned(said: str) -> str:
    """How many jobs a dry run would start, by what they are."""
    units, others = len(re.findall(r"would run [^\n]*, unit ", said)), len(re.findall(r"would run ", said))
    return f"{units} units, {others - units} other jobs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--papers", type=int, default=222)
    papers = parser.parse_args().papers
    with tempfile.TemporaryDirectory() as name:
        origin, clone, clock = Path(name) / "origin", Path(name) / "clone", Clock(Path(name) / "site")
        units = prepare(clock, origin, papers)
        print(f"{papers} simulated papers, {units} units, {len(os.sched_getaffinity(0))} cores")
        clock.python("snapshot, first", origin, "papertrial", "snapshot")
        clock.python("snapshot, nothing new", origin, "papertrial", "snapshot")
        git(clock, origin, "add", "-A")
        git(clock, origin, "commit", "-qm", "snapshot")
        for link in ("copy", "hardlink"):
            fresh(clock, origin, clone, link)
            clock.python(f"DVC's own pull ({link})", clone, "dvc", "pull", "-q")
            fresh(clock, origin, clone, link)
            clock.python(f"restore ({link})", clone, "papertrial", "restore")
        said = clock.python("planning on the restored tree", clone, "snakemake", "-n", *LAPTOP)
        print(f"  plans {planned(said)}")
        clock.python("all pages from what was restored", clone, "snakemake", "--cores", "2", *LAPTOP)
        said = clock.python("planning once more", clone, "snakemake", "-n", *LAPTOP)
        print(f"  plans {planned(said)}")
        fresh(clock, origin, clone, "copy")
        clock.run(clone, sys.executable, "-m", "dvc", "pull", "-q")
        (clone / "mtime.smk").write_text(MTIME)
        plain = ("snakemake", "-s", "mtime.smk", "--workflow-profile", "none", "--cores", "2", "--quiet")
        said = clock.python("rules by modification time: planning after a pull", clone, *plain, "rules", "-n")
        again = re.search(r"^unit +(\d+)", said, flags=re.MULTILINE)
        print(f"  plans {again.group(1) if again else 0} of {units} finished units again")
        clock.python("rules by modification time: --touch --forceall", clone, *plain, "all", "--touch", "--forceall")


if __name__ == "__main__":
    main()
