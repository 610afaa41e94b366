"""Time lost by a kill at a random moment of a training: prints the measures, judges nothing.

    python benchmarks/preemption.py                       # fm16, cut to about five minutes; half an hour in all
    python benchmarks/preemption.py --steps 500 --save-every 60 --kills 3

In a copy of the checkout, base model fm16 at laptop scale is trained undisturbed, then killed (SIGKILL), then told to
stop (SIGTERM), at random moments, and run again. Lost: CPU seconds of both runs beyond the undisturbed one's. The
results must be the same bits.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def job(folder: Path, *arguments: str, end: tuple[float, int] | None = None) -> float:
    """Run a papertrial job, ended after so many of its CPU seconds by a signal; its CPU seconds."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "workflow"), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen([sys.executable, "-m", "papertrial", *arguments], cwd=folder, env=environment)
    while end and sum(psutil.Process(process.pid).cpu_times()[:2]) < end[0]:
        time.sleep(0.02)
    if end:
        process.send_signal(end[1])
    _, status, usage = os.wait4(process.pid, 0)
    if not end and status:
        raise SystemExit(f"papertrial {' '.join(arguments)} failed")
    return usage.ru_utime + usage.ru_stime


def prepare(folder: Path, steps: int, save_every: int) -> str:
    """A copy with a shorter training; the path to train."""
    for name in ("workflow", "config", "profiles", "envs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", folder)
    shutil.copytree(ROOT / "data/datasets", folder / "data/datasets")
    card = folder / "config/models/fm16.yaml"
    short = f"settings: {{steps: {steps}, save_every: {save_every}, gate: {{n: 50, steps: 3, seed: 1000}}}}"
    whole = '  laptop: {parts: ["0"]}'
    assert whole in card.read_text()
    card.write_text(card.read_text().replace(whole, f'  laptop: {{parts: ["0"], {short}}}'))
    command = [sys.executable, "-m", "snakemake", "-n", "reports/laptop/diffusion/dpm-solver.html"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    plans = folder / "data/scratch/plan/laptop/models"
    clf16, fm16 = (json.loads((plans / f"{n}.json").read_text())["parts"]["0"]["path"] for n in ("clf16", "fm16"))
    job(folder, "model", clf16)
    return fm16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--kills", type=int, default=1, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = prepare(folder, args.steps, args.save_every)

        def result() -> dict:
            files = json.loads((folder / path / "provenance.json").read_text())["files"]
            shutil.rmtree(folder / path)
            return files

        cpu = job(folder, "model", path)
        undisturbed = result()
        print(f"undisturbed: {cpu:.0f} CPU s", flush=True)
        moments = random.Random(args.seed)
        for kind in [signal.SIGKILL] * args.kills + [signal.SIGTERM] * args.kills:
            moment = moments.uniform(0, cpu)
            lost = job(folder, "model", path, end=(moment, kind)) + job(folder, "model", path) - cpu
            same = "the same bits" if result() == undisturbed else "OTHER BITS"
            print(f"{kind.name} after {moment:.0f} CPU s: {lost:.0f} CPU s lost, {lost / cpu:.1%}; {same}", flush=True)


if __name__ == "__main__":
    main()
