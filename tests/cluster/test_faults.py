"""What befalls jobs on a cluster, all in one run: toys that run short, are cancelled, wait for a drained node.

Each toy does its mischief before it computes; afterwards the numbers are those of a local run.
"""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cluster import slurm
from tests.cluster.conftest import numbers, on_slurm
from tests.conftest import Checkout, make_checkout

pytestmark = pytest.mark.slow

MISCHIEF = '''"""What the toys do before they compute. tries/<toy> has a line a call: Slurm job, GPUs seen."""

import os
import time
from pathlib import Path

import numpy as np


def tried(toy: str) -> int:
    file = Path("tries") / toy
    with file.open("a") as f:
        f.write(os.environ.get("SLURM_JOB_ID", "local") + " " + os.environ.get("CUDA_VISIBLE_DEVICES", "all") + "\\n")
    return len(file.read_text().splitlines())


def hangs_once(toy: str) -> None:
    if tried(toy) == 1:
        time.sleep(300)


def hungry(toy: str) -> None:
    tried(toy)
    much = np.ones(600 * 2**17)  # 600 MiB: with Python and the job's Snakemake more than 700 MB, less than 1400
    time.sleep(3)  # Slurm looks every second
    del much


def broken(toy: str) -> None:
    tried(toy)
    raise ValueError("broken on purpose")
'''
TOYS = {  # toy: its mischief, what its card asks for
    "overtime": ("hangs_once", "runtime: 1"),
    "hungry": ("hungry", "mem_mb: 700"),
    "cancelled": ("hangs_once", "mem_mb: 500"),
    "with-gpu": ("tried", "gpu: 1"),
    "without-gpu": ("tried", "gpu: 0"),
    "broken": ("broken", "mem_mb: 500"),
}
JUDGED = """

import os
from pathlib import Path

with Path("judged").open("a") as f:
    f.write(os.environ.get("SLURM_JOB_ID", "here") + "\\n")
"""


class Story:
    """The run: what Snakemake said, what Slurm wrote down, what it left."""

    def __init__(self, checkout: Checkout, base: Path, returncode: int) -> None:
        self.checkout = checkout
        self.returncode = returncode
        self.said = (checkout.path / "slurm.txt").read_text()
        self.jobs = {job["JobId"]: job for job in slurm.ended(base)}

    def tries(self, toy: str) -> list[tuple[str, str]]:
        """(Slurm job, CUDA_VISIBLE_DEVICES) of every job in which a toy ran, in order."""
        lines = (self.checkout.path / "tries" / toy).read_text().splitlines()
        return list(dict.fromkeys(tuple(line.split(" ")) for line in lines))

    def states(self, toy: str) -> list[str]:
        return [self.jobs[job]["JobState"] for job, _ in self.tries(toy)]

    def asked(self, toy: str) -> list[tuple[int, str]]:
        """(minutes, memory) that each of a toy's jobs had."""
        jobs = [self.jobs[job] for job, _ in self.tries(toy)]
        return [(int(job["TimeLimit"]), re.search(r"mem=(\w+)", job["Tres"])[1]) for job in jobs]


@pytest.fixture(scope="module")
def story(cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    checkout = make_checkout(tmp_path_factory.mktemp("faults") / "checkout", *TOYS)
    (checkout.path / "tries").mkdir()
    (checkout.path / "workflow/papertrial/methods/mischief.py").write_text(MISCHIEF)
    for toy, (mischief, resources) in TOYS.items():
        method = checkout.paper(toy) / "method.py"
        checkout.edit(method, "import numpy as np\n", "import numpy as np\n\nfrom papertrial.methods import mischief\n")
        checkout.edit(method, "    eigenvalues = np.geo", f'    mischief.{mischief}("{toy}")\n    eigenvalues = np.geo')
        card = checkout.path / f"config/papers/toys/{toy}.yaml"
        checkout.edit(card, "cap: 5000}, units: paper", f"cap: 5000}}, units: paper, {resources}")
    evidence = checkout.paper("broken") / "evidence.py"
    evidence.write_text(evidence.read_text() + JUDGED)
    run = on_slurm(checkout)
    try:
        _wait((checkout.path / "tries/cancelled").exists)
        _call("scancel", *_running("toys_cancelled"))
        _wait((checkout.path / "tries/overtime").exists)
        _node("state=drain", "reason=test")
        _wait(lambda: "UnavailableNodes" in _call("squeue", "-h", "-t", "pending", "-o", "%r"))
        _node("state=resume")
        returncode = run.wait(timeout=400)
    finally:
        run.kill()
        run.wait()
    return Story(checkout, cluster, returncode)


def test_what_ran_out_of_time_is_retried_with_more(story):
    assert story.states("overtime") == ["TIMEOUT", "COMPLETED"]
    assert story.asked("overtime") == [(1, "2000M"), (2, "4000M")]
    assert "again: toys/overtime, unit all at smoke scale, with 4000 MB and 2 min" in story.said


def test_what_ran_out_of_memory_is_retried_with_more(story):
    assert story.states("hungry") == ["FAILED", "COMPLETED"]
    assert story.asked("hungry") == [(30, "700M"), (60, "1400M")]
    assert "Exceeded job memory limit" in story.said


def test_what_was_cancelled_is_run_again(story):
    assert story.states("cancelled") == ["CANCELLED", "COMPLETED"]


def test_an_error_of_the_units_own_is_not_run_again(story):
    assert story.states("broken") == ["FAILED"]
    assert "ValueError: broken on purpose" in story.said
    assert "not tried again, since it failed by an error of its own" in story.said
    assert story.returncode == 1


def test_a_job_sees_the_gpus_that_its_card_asks_for(story):
    assert [gpus for _, gpus in story.tries("with-gpu")] in (["0"], ["1"])
    assert [gpus for _, gpus in story.tries("without-gpu")] == [""]


def test_a_failed_unit_names_its_log_on_the_cluster(story):
    job, _ = story.tries("overtime")[0]
    failed = story.said.partition(f"FAILED toys/overtime, unit all at smoke scale: SLURM-job {job}, TIMEOUT")[2]
    log = Path(re.search(r"the cluster's log: (\S+)", failed)[1])
    assert log.name == f"{job}.log"
    assert "DUE TO TIME LIMIT" in log.read_text()


def test_pages_are_judged_only_where_it_was_submitted(story):
    judged = (story.checkout.path / "judged").read_text().split()
    assert set(judged) == {"here"}


def test_the_numbers_are_those_of_a_local_run(story):
    atlas = json.loads((story.checkout.path / "reports/smoke/atlas.json").read_text())
    verdicts = {p["slug"]: p["claims"][0]["verdict"] for p in atlas["papers"]}
    assert verdicts == {toy: "not measured" if toy == "broken" else "replicated" for toy in TOYS}
    there = numbers(story.checkout)
    shutil.rmtree(story.checkout.path / "data/runs")
    assert story.checkout.snakemake(check=False).returncode == 1  # broken is broken here, too
    here = numbers(story.checkout)
    assert len(there) == len(TOYS) - 1
    assert there == here


def _running(paper: str) -> list[str]:
    """The running Slurm jobs of a paper's units: the executor writes the wildcards into the comment."""
    lines = _call("squeue", "-h", "-t", "running", "-o", "%i %k").splitlines()
    return [line.split()[0] for line in lines if f"_{paper}_" in line]


def _node(*changes: str) -> None:
    _call("scontrol", "update", f"nodename={_call('sinfo', '-h', '-o', '%n').strip()}", *changes)


def _call(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _wait(there: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.5)
