"""What versioned artifacts cost: prints the measures, judges nothing.

    python benchmarks/versions.py --papers 222      # simulated from the skeleton, three units each

Snapshot, a snapshot with nothing new, restore into a clone (copies, then hard links), planning on the restored tree,
all pages from what was restored; beside it what mtime-based rules would pay after a pull: one touch of everything.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from engine import ENVIRONMENT, ROOT, simulate, snakemake

LAPTOP = ("--config", "scale=laptop")


def run(folder: Path, *command: str) -> float:
    """Wall seconds of a command with this checkout's code."""
    env = {**ENVIRONMENT, "PYTHONPATH": str(folder / "workflow")}
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
    return time.perf_counter() - start


def papertrial(folder: Path, *arguments: str) -> float:
    return run(folder, sys.executable, "-m", "papertrial", *arguments)


def git(folder: Path, *arguments: str) -> None:
    run(folder, "git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", *arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--papers", type=int, default=222)
    papers = parser.parse_args().papers
    with tempfile.TemporaryDirectory() as name:
        origin, clone = Path(name) / "origin", Path(name) / "clone"
        origin.mkdir()
        simulate(origin, papers)
        for item in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore"):
            (origin / item).parent.mkdir(exist_ok=True)
            (origin / item).write_text((ROOT / item).read_text())
        git(origin, "init", "-q")
        print(
            f"running {papers} simulated papers at laptop scale: {snakemake(origin, '--cores', 'all', *LAPTOP):.0f} s"
        )
        units = len(list(origin.glob("data/runs/laptop/*/*/*@*")))
        print(f"snapshot of {units} units: {papertrial(origin, 'snapshot'):.1f} s")
        print(f"snapshot with nothing new: {papertrial(origin, 'snapshot'):.1f} s")
        git(origin, "add", "-A")
        git(origin, "commit", "-qm", "snapshot")
        for link in ("copy", "hardlink"):
            run(Path(name), "rm", "-rf", str(clone))
            git(Path(name), "clone", "-q", str(origin), str(clone))
            run(clone, sys.executable, "-m", "dvc", "config", "--local", "cache.type", link)
            pull = run(clone, sys.executable, "-m", "dvc", "pull", "-q")
            run(clone, "bash", "-c", "rm -rf data/runs/laptop/*/*/*@*/ .dvc/cache")
            print(f"restore ({link}): {papertrial(clone, 'restore'):.1f} s; DVC's own pull alone: {pull:.1f} s")
        print(f"planning on the restored tree: {snakemake(clone, '-n', *LAPTOP):.1f} s")
        print(f"all pages from what was restored: {snakemake(clone, '--cores', 'all', *LAPTOP):.0f} s")
        touch = snakemake(clone, "--cores", "all", "--touch", "--forceall", *LAPTOP)
        print(f"for comparison, what mtime-based rules need after a pull, --touch --forceall: {touch:.0f} s")


if __name__ == "__main__":
    main()
