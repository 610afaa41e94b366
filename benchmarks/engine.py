"""What the engine costs: prints the measures, judges nothing.

    python benchmarks/engine.py                         # all, from what has run at laptop scale
    python benchmarks/engine.py --loop smoke            # also every unit of a scale again, in one plain process

- overhead: (wall x cores) / CPU seconds of the units, of the last full run at laptop scale (reports/laptop/atlas.json)
- planning: snakemake -n with nothing to do, here and for 222 papers copied from the skeleton
- smoke: CPU seconds a paper
- size: lines of method.py + evidence.py + yaml a paper
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


def snakemake(folder: Path, *arguments: str) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "snakemake", *arguments]
    subprocess.run(command, cwd=folder, env=ENVIRONMENT, check=True, capture_output=True)
    return time.perf_counter() - start


def overhead() -> None:
    file = ROOT / "reports/laptop/atlas.json"
    engine = json.loads(file.read_text())["engine"] if file.exists() else {}
    if not engine.get("compute_cpu_s"):
        print("overhead: no full run at laptop scale here (snakemake --cores all --config scale=laptop)")
        return
    wall, cores, cpu = engine["wall_s"], engine["cores"], engine["compute_cpu_s"]
    print(f"overhead: {wall:.0f} s x {cores} cores / {cpu:.0f} CPU s = {wall * cores / cpu:.2f}")


def planning() -> None:
    """Simulated: the skeleton under 222 names."""
    print(f"planning, this checkout, everything asked for at smoke scale: {snakemake(ROOT, '-n'):.1f} s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate(folder, 222)
        print(f"planning, 222 simulated papers, all to run: {snakemake(folder, '-n'):.1f} s")
        start = time.perf_counter()
        snakemake(folder, "--cores", "all")
        print(f"running, 222 simulated papers: {time.perf_counter() - start:.0f} s")
        print(f"planning, 222 simulated papers, nothing to do: {snakemake(folder, '-n'):.1f} s")
        shutil.rmtree(folder / "reports")
        print(f"all pages of 222 simulated papers from cached results: {snakemake(folder, '--cores', 'all'):.0f} s")


def simulate(folder: Path, papers: int) -> None:
    """A checkout in which the only papers are copies of the skeleton."""
    shutil.copytree(ROOT / "workflow", folder / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(folder / "workflow/papertrial/papers")
    (folder / "workflow/papertrial/papers").mkdir()
    (folder / "workflow/papertrial/papers/__init__.py").write_text('"""Papers."""\n')
    (folder / "config/papers").mkdir(parents=True)
    (folder / "config/models").mkdir()
    shutil.copy(ROOT / "config/config.yaml", folder / "config")
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    shutil.copytree(ROOT / "envs", folder / "envs")
    shutil.copy(ROOT / "Snakefile", folder)
    write = "from papertrial.engine.skeleton import write_skeleton\n" + "\n".join(
        f"write_skeleton('simulated/paper-{i}')" for i in range(papers)
    )
    env = {**ENVIRONMENT, "PYTHONPATH": str(folder / "workflow")}
    subprocess.run([sys.executable, "-c", write], cwd=folder, env=env, check=True, capture_output=True)


def smoke() -> None:
    """From the provenance of the units that lie here."""
    spent: dict[str, float] = defaultdict(float)
    for file in (ROOT / "data/runs/smoke").glob("*/*/*@*/provenance.json"):
        spent["/".join(file.parts[-4:-2])] = json.loads(file.read_text())["cost"]["cpu_s"]
    for paper, seconds in sorted(spent.items()):
        print(f"smoke: {paper} {seconds:.1f} CPU s")


def size() -> None:
    for card in sorted((ROOT / "config/papers").glob("*/*.yaml")):
        folder = ROOT / "workflow/papertrial/papers" / card.parent.name / card.stem.replace("-", "_")
        counts = [len(f.read_text().splitlines()) for f in (folder / "method.py", folder / "evidence.py", card)]
        print(f"size: {card.parent.name}/{card.stem} {sum(counts)} lines (method, evidence, yaml: {counts})")


def loop(scale: str) -> None:
    """The same units, one after another in one process, without Snakemake and without a process each."""
    sys.path.insert(0, str(ROOT / "workflow"))
    os.chdir(ROOT)
    from papertrial.engine.plans import Planner
    from papertrial.engine.project import Project
    from papertrial.engine.runner import inputs_of

    planner = Planner(Project())
    start = time.perf_counter()
    for paper in planner.project.papers:
        plan = planner.paper(scale, paper)
        method = __import__(f"{plan['module']}.method", fromlist=["run"])
        for unit in plan["units"].values():
            for run in unit["runs"]:
                points = run["tune"]["points"] if run["tune"] else []
                for settings, seeds in [*((p, run["tune"]["seeds"]) for p in points), ({}, run["seeds"])]:
                    merged = {**run["settings"], **settings}
                    method.run(dict(run["problem"]), run["method"], merged, seeds, inputs_of(plan["needs"]), "cpu")
    print(f"a plain loop over the units at {scale} scale, one process: {time.perf_counter() - start:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loop", choices=("smoke", "laptop"), help="also run a scale's units in one process")
    args = parser.parse_args()
    overhead()
    smoke()
    size()
    planning()
    if args.loop:
        os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        loop(args.loop)


if __name__ == "__main__":
    main()
