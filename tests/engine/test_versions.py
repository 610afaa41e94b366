"""Versioned artifacts: a clone and a pull is a no-op, and nothing damaged or missing goes unsaid."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from tests.conftest import Checkout

LAPTOP = ("--config", "scale=laptop")
UNITS = 3  # of each toy paper


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Checkout:
    """A checkout that ran, took a snapshot and committed it; its remote lies beside it."""
    from tests.conftest import make_checkout

    here = make_checkout(tmp_path_factory.mktemp("origin") / "checkout", "first", "second")
    here.snakemake(*LAPTOP)
    here.papertrial("snapshot")
    commit(here, "snapshot")
    return here


def commit(checkout: Checkout, message: str) -> None:
    checkout.run("git", "add", "-A")
    checkout.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", message)


@pytest.fixture
def clone(origin: Checkout, tmp_path: Path) -> Checkout:
    return cloned(origin, tmp_path)


def cloned(origin: Checkout, folder: Path) -> Checkout:
    """A clone with a copy of the remote beside it, so that tests can damage it."""
    shutil.copytree(origin.path.parent / "papertrial-store", folder / "papertrial-store")
    subprocess.run(["git", "clone", "-q", origin.path, folder / "clone"], check=True)
    return Checkout(folder / "clone")


def verdicts(checkout: Checkout) -> dict[str, tuple[str, str]]:
    atlas = json.loads((checkout.path / "reports/laptop/atlas.json").read_text())
    return {p["slug"]: (p["source"], p["claims"][0]["verdict"]) for p in atlas["papers"]}


@pytest.mark.parametrize("link", ["copy", "hardlink", "symlink"])
def test_a_clone_and_a_pull_is_a_no_op(clone, origin, link):
    clone.run(sys.executable, "-m", "dvc", "config", "--local", "cache.type", link)
    clone.papertrial("restore")
    assert clone.planned(*LAPTOP) == ["atlas"]
    clone.snakemake(*LAPTOP)
    assert verdicts(clone) == {"first": ("pulled", "replicated"), "second": ("pulled", "replicated")}
    assert clone.planned(*LAPTOP) == []
    for unit in origin.units("laptop"):
        same = clone.path / unit.relative_to(origin.path) / "results.parquet"
        assert same.read_bytes() == (unit / "results.parquet").read_bytes()


def test_a_warm_cache_older_than_the_clone_is_a_no_op_too(clone):
    clone.papertrial("restore")
    for unit in clone.units("laptop"):
        shutil.rmtree(unit)
    old = time.time() - 10**8
    for file in (clone.path / ".dvc/cache").rglob("*"):
        os.utime(file, (old, old))
    clone.run(sys.executable, "-m", "dvc", "config", "--local", "cache.type", "hardlink")
    clone.papertrial("restore")
    assert clone.planned(*LAPTOP) == ["atlas"]


def test_a_snapshot_adds_only_what_is_new_and_loses_nothing_that_was_not_pulled(clone):
    clone.papertrial("restore", "first")
    assert {u.parent.name for u in clone.units("laptop")} == {"first"}
    assert "3 artifacts here, 0 newly tracked" in clone.papertrial("snapshot").stdout
    assert len(list(clone.path.glob("data/runs/laptop/toys/second/*.dvc"))) == UNITS
    assert clone.run("git", "status", "--porcelain").stdout == ""
    clone.papertrial("restore")
    assert clone.planned(*LAPTOP) == ["atlas"]


def test_partial_truth(clone):
    """One paper pulled, one recorded only, then stale; the atlas is whole and says which is which."""
    clone.papertrial("restore", "first")
    clone.papertrial("atlas", "laptop")
    assert verdicts(clone) == {"first": ("pulled", "replicated"), "second": ("recorded", "replicated")}
    page = (clone.path / "reports/laptop/toys/second.html").read_text()
    assert "recorded on" in page and "stale" not in page
    clone.edit(clone.paper("second") / "method.py", "1e-6 *", "1e-5 *")
    clone.papertrial("atlas", "laptop")
    page = (clone.path / "reports/laptop/toys/second.html").read_text()
    assert "stale since a change of papertrial.papers.toys.second.method" in page
    said = clone.papertrial("restore").stdout
    assert "toys/second: not covered: momentum, descent, no-momentum" in said
    assert "papertrial.papers.toys.second.method" in said
    shutil.rmtree(clone.path / "data/recorded")
    clone.papertrial("atlas", "laptop")
    assert verdicts(clone)["second"] == ("none", "not measured")


def test_a_fresh_run_is_compared_with_the_record(clone):
    clone.snakemake(*LAPTOP)
    page = json.loads((clone.path / "reports/laptop/toys/first.json").read_text())
    assert page["source"] == "run" and page["agreement"]["agree"]
    table = clone.path / "data/recorded/toys/first.csv"
    recorded = pd.read_csv(table)
    recorded.assign(iterations=2 * recorded["iterations"]).to_csv(table, index=False)
    (clone.path / "reports/laptop/toys/first.html").unlink()
    clone.papertrial("atlas", "laptop")
    page = json.loads((clone.path / "reports/laptop/toys/first.json").read_text())
    assert not page["agreement"]["agree"]


def test_one_edited_method_is_all_that_runs_again(clone):
    clone.papertrial("restore")
    clone.edit(clone.paper("second") / "method.py", "1e-6 *", "1e-5 *")
    assert clone.planned(*LAPTOP) == ["atlas"] + ["unit of toys/second"] * UNITS


def damage(folder: Path) -> int:
    """Flip a byte of every object that is a parquet table."""
    damaged = 0
    for file in folder.rglob("*"):
        if file.is_file() and file.read_bytes()[:4] == b"PAR1":
            file.chmod(0o644)
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
            damaged += 1
    return damaged


def test_a_damaged_object_in_the_remote_is_never_taken(clone):
    assert damage(clone.path.parent / "papertrial-store")
    refused = clone.papertrial("restore", check=False)
    assert refused.returncode == 1 and "did not arrive whole" in refused.stderr
    assert not clone.units("laptop")
    clone.papertrial("atlas", "laptop")
    assert verdicts(clone)["first"][0] == "recorded"


def test_a_damaged_cache_is_dropped_and_fetched_again(clone):
    clone.papertrial("restore")
    for unit in clone.units("laptop"):
        shutil.rmtree(unit)
    assert damage(clone.path / ".dvc/cache")
    said = clone.papertrial("restore").stdout
    assert f"{2 * UNITS} artifacts restored and checked" in said
    assert clone.planned(*LAPTOP) == ["atlas"]


def test_a_truncated_pull_is_told_and_completed_later(clone):
    store = clone.path.parent / "papertrial-store"
    tables = [f for f in store.rglob("*") if f.is_file() and f.read_bytes()[:4] == b"PAR1"]
    kept = {f: f.read_bytes() for f in tables}
    for file in tables:
        file.unlink()
    refused = clone.papertrial("restore", check=False)
    assert refused.returncode == 1 and "did not arrive whole" in refused.stderr
    assert not clone.units("laptop")
    for file, content in kept.items():
        file.write_bytes(content)
    clone.papertrial("restore")
    assert clone.planned(*LAPTOP) == ["atlas"]


def test_a_remote_that_is_gone(clone):
    shutil.rmtree(clone.path.parent / "papertrial-store")
    refused = clone.papertrial("restore", check=False)
    assert refused.returncode == 1 and "did not arrive whole" in refused.stderr
    clone.papertrial("atlas", "laptop")
    assert verdicts(clone)["first"] == ("recorded", "replicated")


@pytest.mark.slow
def test_an_interrupted_push_is_completed_by_the_next(origin, tmp_path):
    here = Checkout(tmp_path / "other")
    shutil.copytree(origin.path, here.path)
    here.snakemake(*LAPTOP, "--config", "scale=laptop", "extra_seeds=1")
    command = [sys.executable, "-m", "papertrial", "snapshot"]
    running = subprocess.Popen(
        command, cwd=here.path, env=here.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(1.0)
    running.send_signal(signal.SIGKILL)
    running.wait()
    here.papertrial("snapshot")
    commit(here, "again")
    again = cloned(here, tmp_path / "clones")
    again.papertrial("restore")
    assert again.planned(*LAPTOP) == ["atlas"]


def test_a_full_disk_during_restore(clone):
    """A limit on file size stands in for the disk."""
    limited = ["bash", "-c", f"ulimit -f 1; trap '' XFSZ; exec {sys.executable} -m papertrial restore"]
    failed = clone.run(*limited, check=False)
    assert failed.returncode != 0
    for unit in clone.units("laptop"):
        assert clone.run(sys.executable, "-c", f"from papertrial.engine.artifacts import verify; verify('{unit}')")
    clone.papertrial("restore")
    assert clone.planned(*LAPTOP) == ["atlas"]


def test_prune_removes_what_no_plan_names(clone):
    clone.papertrial("restore")
    clone.edit(clone.paper("second") / "method.py", "1e-6 *", "1e-5 *")
    clone.papertrial("prune")
    assert {u.parent.name for u in clone.units("laptop")} == {"first"}
    assert not list(clone.path.glob("data/runs/laptop/toys/second/*.dvc"))
