"""Bad input and bad luck: one clear message, the other papers finish, nothing damaged is read, the next run retries."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

BEFORE = "return Results("
ROWS = '"iterations": int(k)}'
KILL = "import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)\n    return Results("
CASES = {
    "raises": (BEFORE, f"raise OSError('no luck')\n    {BEFORE}", "OSError: no luck (method.py, line"),
    "returns NaN": (ROWS, '"iterations": float("nan")}', "momentum on quadratic: iterations is nan for seed 0"),
    "returns infinity": (ROWS, '"iterations": float("inf")}', "iterations is inf for seed 0"),
    "loses rows": ("zip(seeds, iterations, strict=True)]", "zip(seeds[1:], iterations)]", "no rows for seed 0"),
    "is killed": (BEFORE, KILL, "hasn't run, or was killed"),
    "runs out of memory": (BEFORE, f"raise MemoryError('too much')\n    {BEFORE}", "MemoryError: too much"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_unit_that(checkout, case):
    old, new, told = CASES[case]
    method = checkout.paper("first") / "method.py"
    good = method.read_text()
    checkout.edit(method, old, new)
    failed = checkout.snakemake(check=False)
    assert failed.returncode == 1
    assert "FAILED toys/first, unit all at smoke scale" in failed.stderr
    page = json.loads((checkout.path / "reports/smoke/toys/first.json").read_text())
    assert page["claims"][0]["verdict"] == "not measured"
    assert told in page["missing"][0] and "data/runs/smoke/toys/first/all@" in page["missing"][0]
    other = json.loads((checkout.path / "reports/smoke/toys/second.json").read_text())
    assert other["claims"][0]["verdict"] == "replicated"
    assert [u.parent.name for u in checkout.units()] == ["second"]
    method.write_text(good)
    assert checkout.planned() == ["atlas", "unit of toys/first"]


@pytest.mark.parametrize("file", ["results.parquet", "provenance.json"])
def test_a_truncated_artifact_is_set_aside_and_made_again(checkout, file):
    checkout.snakemake()
    unit = next(u for u in checkout.units() if u.parent.name == "first")
    whole = (unit / file).read_bytes()
    (unit / file).write_bytes(whole[: len(whole) // 2])
    (checkout.path / "reports/smoke/toys/first.html").unlink()
    checkout.papertrial("atlas", "smoke")
    page = json.loads((checkout.path / "reports/smoke/toys/first.json").read_text())
    assert page["claims"][0]["verdict"] == "not measured"
    assert file in page["missing"][0] and "set aside" in page["missing"][0]
    assert not unit.exists()
    checkout.snakemake()
    assert (unit / file).exists()
    page = json.loads((checkout.path / "reports/smoke/toys/first.json").read_text())
    assert page["claims"][0]["verdict"] == "replicated"


MISTAKES = [
    (["--config", "papers=frist"], "no paper is called 'frist'; did you mean 'first'?"),
    (["--config", "scale=lptop"], "scale: Input should be 'smoke', 'laptop' or 'paper'"),
    (["--config", "device=tpu"], "device: Input should be 'auto', 'cpu', 'cuda' or 'mps'"),
    (["reports/smoke/toys/frist.html"], "no paper is called 'toys/frist'; did you mean 'toys/first'?"),
]


@pytest.mark.parametrize(("arguments", "told"), MISTAKES)
def test_an_unknown_name_is_told_before_anything_runs(checkout, arguments, told):
    failed = checkout.snakemake(*arguments, check=False)
    assert failed.returncode == 1 and told in failed.stderr
    assert not checkout.units()


def test_mistakes_in_cards_are_told_before_anything_runs(checkout):
    card = checkout.path / "config/papers/toys/first.yaml"
    good = card.read_text()
    for old, new, told in [
        ("claims:", "claimz:", "config/papers/toys/first.yaml: unknown key 'claimz'; did you mean 'claims'?"),
        (
            "momentum: {role: proposed,",
            "momentun: {role: proposed,",
            "no such name 'momentum'; did you mean 'momentun'?",
        ),
        ("title:", "title: [", "config/papers/toys/first.yaml: not valid yaml"),
        ("problems:", "needs: {models: [fm61]}\nproblems:", "no base model is called 'fm61'"),
        ("problems:", "needs: {datasets: [nowhere]}\nproblems:", "there is no"),
    ]:
        checkout.edit(card, old, new)
        failed = checkout.snakemake(check=False)
        assert failed.returncode == 1 and told in failed.stderr, failed.stderr
        card.write_text(good)
    twin = checkout.path / "config/papers/other/first.yaml"
    twin.parent.mkdir()
    shutil.copy(card, twin)
    failed = checkout.snakemake(check=False)
    assert "two papers have the slug 'first': other/first and toys/first" in failed.stderr
    assert not checkout.units()


def test_an_evidence_module_that_breaks_leaves_the_others_alone(checkout):
    checkout.edit(checkout.paper("first") / "evidence.py", 'table["descent"]', 'table["descend"]')
    checkout.snakemake()
    page = json.loads((checkout.path / "reports/smoke/toys/first.json").read_text())
    assert page["claims"][0]["verdict"] == "not measured"
    assert "KeyError: 'descend'" in page["claims"][0]["reason"]
    other = json.loads((checkout.path / "reports/smoke/toys/second.json").read_text())
    assert other["claims"][0]["verdict"] == "replicated"


def test_cuda_asked_for_where_there_is_none(checkout):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one")
    checkout.edit(checkout.paper("first") / "method.py", "import numpy as np", "import numpy as np\nimport torch")
    failed = checkout.snakemake("--config", "device=cuda", check=False)
    assert failed.returncode == 1
    assert "device=cuda was asked for, but torch" in failed.stderr


def test_a_unit_killed_in_mid_write_then_the_same_command(checkout):
    """kill -9 between a table and its provenance: nothing stands in the unit's place; then the undisturbed bytes."""
    page = "reports/smoke/toys/second.html"
    checkout.snakemake(page)
    (unit,) = checkout.units()
    undisturbed = (unit / "results.parquet").read_bytes()
    shutil.rmtree(unit)
    writer = checkout.path / "workflow/papertrial/engine/artifacts.py"
    whole = writer.read_text()
    last = "text = json.dumps({**provenance"
    checkout.edit(writer, last, f"os.kill(os.getpid(), 9)\n        {last}")
    assert checkout.snakemake(page, check=False).returncode == 1
    (left,) = unit.parent.iterdir()
    assert left.name.startswith(f".{unit.name}") and (left / "results.parquet").exists()
    writer.write_text(whole)
    checkout.snakemake(page)
    assert (unit / "results.parquet").read_bytes() == undisturbed
    assert list(unit.parent.iterdir()) == [unit]


@pytest.mark.parametrize("with_its_job", [False, True], ids=["its job lives on", "with its job"])
def test_snakemake_itself_killed_then_the_same_command(checkout, with_its_job):
    """kill -9 in the middle of a unit: after unlocking, the same command finishes with the same bytes."""
    checkout.snakemake("reports/smoke/toys/second.html")
    undisturbed = (checkout.units()[0] / "results.parquet").read_bytes()
    shutil.rmtree(checkout.units()[0])
    wait = "__import__('time').sleep(0.05)\n    return Results("
    wait = f"while not __import__('pathlib').Path('go').exists():\n        {wait}"
    checkout.edit(checkout.paper("second") / "method.py", "return Results(", wait)
    logs = checkout.path / "data/scratch/logs/runs/smoke/toys/second"
    before = set(logs.glob("all@*"))
    command = [sys.executable, "-m", "snakemake", "--cores", "2"]
    quiet = {"cwd": checkout.path, "env": checkout.env, "stderr": subprocess.DEVNULL}
    running = subprocess.Popen(command, start_new_session=True, **quiet)
    deadline = time.monotonic() + 120
    while set(logs.glob("all@*")) == before and time.monotonic() < deadline:
        time.sleep(0.05)  # until the job has begun
    refused = checkout.papertrial("unlock", check=False)
    assert refused.returncode == 1 and "a snakemake is at work" in refused.stderr
    (os.killpg if with_its_job else os.kill)(running.pid, signal.SIGKILL)
    running.wait()
    locked = checkout.snakemake(check=False)
    assert locked.returncode == 1 and "lock" in locked.stderr.lower()
    unlocking = [sys.executable, "-m", "papertrial", "unlock"]
    unlock = subprocess.Popen(unlocking, stdout=subprocess.PIPE, text=True, **quiet)
    if not with_its_job:
        assert "jobs of a killed run" in unlock.stdout.readline()  # the other paper may still be at it, too
    (checkout.path / "go").touch()
    assert "removed the lock" in unlock.communicate()[0]
    checkout.snakemake()
    after = next(u for u in checkout.units() if u.parent.name == "second")
    assert (after / "results.parquet").read_bytes() == undisturbed
