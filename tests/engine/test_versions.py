"""Versioned artifacts: a clone and a pull is a no-op, and nothing damaged or missing goes unsaid."""

import hashlib
import json
import os
import re
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


def test_a_cache_that_clones_share_needs_no_remote(origin, tmp_path):
    """And what it hands out is linked, never written to: the second clone's artifacts are the first one's inodes."""
    clones = [cloned(origin, tmp_path / name) for name in ("one", "two")]
    for here in clones:
        here.run(sys.executable, "-m", "dvc", "config", "--local", "cache.dir", str(tmp_path / "shared"))
        here.run(sys.executable, "-m", "dvc", "config", "--local", "cache.type", "hardlink")
    clones[0].papertrial("restore")
    shutil.rmtree(tmp_path / "two/papertrial-store")
    clones[1].papertrial("restore")
    assert clones[1].planned(*LAPTOP) == ["atlas"]
    inodes = [{(u / "results.parquet").stat().st_ino for u in here.units("laptop")} for here in clones]
    assert inodes[0] == inodes[1]


def test_a_snapshot_adds_only_what_is_new_and_loses_nothing_that_was_not_pulled(clone):
    clone.papertrial("restore", "first")
    assert {u.parent.name for u in clone.units("laptop")} == {"first"}
    assert "3 artifacts here, 0 newly tracked" in clone.papertrial("snapshot").stdout
    assert len(list(clone.path.glob("data/runs/laptop/toys/second/*.dvc"))) == UNITS
    assert clone.run("git", "status", "--porcelain").stdout == ""
    shutil.rmtree(clone.path.parent / "papertrial-store")  # a remote that lost everything gets it back
    clone.papertrial("snapshot")
    shutil.rmtree(clone.path / ".dvc/cache")
    shutil.rmtree(clone.units("laptop")[0])
    clone.papertrial("restore", "first")
    assert len(clone.units("laptop")) == UNITS


def test_a_damaged_artifact_is_not_tracked(clone):
    clone.papertrial("restore")
    first, *others = clone.units("laptop")
    for tracked in clone.path.glob("data/runs/**/*.dvc"):
        tracked.unlink()
    (first / "results.parquet").chmod(0o644)
    (first / "results.parquet").write_bytes(b"PAR1")
    said = clone.papertrial("snapshot").stdout
    assert f"{first.relative_to(clone.path)}: not tracked" in said and f"{len(others)} newly tracked" in said
    assert not Path(f"{first}.dvc").exists() and all(Path(f"{u}.dvc").exists() for u in others)


def where(checkout: Checkout) -> dict[str, str]:
    """{paper: where its verdict comes from}, as the index says it."""
    index = (checkout.path / "reports/laptop/index.html").read_text()
    rows = re.findall(r'<tr id="(\w+)\.c1".*?</tr>', index, flags=re.DOTALL)
    cells = re.findall(r"<td>([^<]*?) <span class=\"date\">|<td>([^<]*)</td></tr>", index)
    return dict(zip(rows, (dated or plain for dated, plain in cells), strict=True))


def test_partial_truth(clone):
    """Run here, pulled, recorded, stale, never run: the atlas is whole and says which is which."""
    clone.papertrial("restore", "first")
    clone.papertrial("atlas", "laptop")
    assert verdicts(clone) == {"first": ("pulled", "replicated"), "second": ("recorded", "replicated")}
    assert where(clone) == {"first": "pulled", "second": "recorded"}
    page = (clone.path / "reports/laptop/toys/second.html").read_text()
    commit = json.loads((clone.path / "data/recorded/toys/second.json").read_text())["commit"]
    assert "recorded on" in page and f"at {commit[:10]}" in page and "stale" not in page
    clone.edit(clone.paper("second") / "method.py", "1e-6 *", "1e-5 *")
    clone.papertrial("atlas", "laptop")
    assert where(clone) == {"first": "pulled", "second": "recorded, outdated"}
    page = (clone.path / "reports/laptop/toys/second.html").read_text()
    assert "stale since a change of papertrial.papers.toys.second.method" in page
    said = clone.papertrial("restore").stdout
    assert "toys/second: not covered: momentum, descent, no-momentum" in said
    assert "papertrial.papers.toys.second.method" in said
    clone.snakemake("reports/laptop/toys/second.html")
    shutil.rmtree(clone.path / "data/recorded")
    clone.papertrial("atlas", "laptop")
    assert where(clone) == {"first": "pulled", "second": "run here"}
    for unit in clone.units("laptop"):
        shutil.rmtree(unit)
    clone.papertrial("atlas", "laptop")
    assert where(clone) == {"first": "never run", "second": "never run"}
    assert verdicts(clone)["second"] == ("none", "not measured")


def test_a_fresh_run_is_compared_with_the_record(clone):
    clone.snakemake("reports/laptop/toys/first.html")
    page = json.loads((clone.path / "reports/laptop/toys/first.json").read_text())
    assert page["source"] == "run" and page["agreement"]["agree"]
    table = clone.path / "data/recorded/toys/first.csv"
    recorded = pd.read_csv(table)
    recorded.assign(iterations=2 * recorded["iterations"], other=1.0).to_csv(table, index=False)
    (clone.path / "reports/laptop/toys/first.html").unlink()
    clone.papertrial("atlas", "laptop")
    agreement = json.loads((clone.path / "reports/laptop/toys/first.json").read_text())["agreement"]
    assert not agreement["agree"] and agreement["metrics"]["iterations"]["agree"] == 0
    assert "differs (iterations 0/" in (clone.path / "reports/laptop/toys/first.html").read_text()


def test_a_unit_run_here_after_it_was_pulled_counts_as_run_here(clone):
    clone.papertrial("restore", "first")
    for unit in clone.units("laptop"):
        shutil.rmtree(unit)
    time.sleep(1)  # a start is known to the second
    clone.snakemake("reports/laptop/toys/first.html")
    assert json.loads((clone.path / "reports/laptop/toys/first.json").read_text())["source"] == "run"


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


def test_one_object_missing_from_the_remote_costs_one_artifact(clone, origin):
    unit = origin.units("laptop")[0]
    lost = hashlib.md5((unit / "provenance.json").read_bytes()).hexdigest()
    (clone.path.parent / "papertrial-store/files/md5" / lost[:2] / lost[2:]).unlink()
    refused = clone.papertrial("restore", check=False)
    missing = str(unit.relative_to(origin.path))
    assert refused.returncode == 1
    assert refused.stderr.endswith(f"did not arrive whole:\n  {missing}: not here\n")
    assert len(clone.units("laptop")) == 2 * UNITS - 1
    assert clone.planned(*LAPTOP) == ["atlas", "unit of toys/first"]


def test_a_remote_that_is_gone(clone):
    shutil.rmtree(clone.path.parent / "papertrial-store")
    refused = clone.papertrial("restore", check=False)
    assert refused.returncode == 1 and "did not arrive whole" in refused.stderr
    clone.papertrial("atlas", "laptop")
    assert verdicts(clone)["first"] == ("recorded", "replicated")


KILLED = """
import importlib, os, signal
from papertrial.__main__ import main

module = importlib.import_module("{module}")
whole, calls = module.{function}, []

def half(*arguments, **options):
    calls.append(arguments)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments, **options)

module.{function} = half
main(["{command}"])
"""
COLLECTING = ("dvc_data.index.collect", "_collect_from_index")
TRANSFERRING = ("dvc_data.hashfile.transfer", "_add")
CHECKING_OUT = ("dvc_objects.fs.generic", "_try_links")


def killed(checkout: Checkout, command: str, moment: tuple[str, str]) -> None:
    """A command that is killed -9 when it comes to some function of DVC's for the third time."""
    module, function = moment
    script = KILLED.format(module=module, function=function, command=command)
    assert checkout.run(sys.executable, "-c", script, check=False).returncode == -signal.SIGKILL


def objects(folder: Path) -> set[str]:
    """The names of DVC's objects under a cache or remote."""
    return {str(f.relative_to(folder)) for f in (folder / "files/md5").rglob("*") if f.is_file()}


@pytest.mark.parametrize("moment", [COLLECTING, TRANSFERRING], ids=["collecting", "transferring"])
def test_a_killed_push_is_completed_by_the_next(origin, tmp_path, moment):
    here = Checkout(Path(shutil.copytree(origin.path, tmp_path / "here")))
    remote, cache = tmp_path / "papertrial-store", here.path / ".dvc/cache"  # the copy's remote has nothing yet
    killed(here, "snapshot", moment)
    assert objects(remote) < objects(cache)
    here.papertrial("snapshot")
    assert objects(remote) == objects(cache)


@pytest.mark.parametrize(
    "moment", [COLLECTING, TRANSFERRING, CHECKING_OUT], ids=["collecting", "transferring", "checking out"]
)
def test_a_killed_restore_is_completed_by_the_next(clone, moment):
    if moment is CHECKING_OUT:  # which alone links, once everything is in the cache
        clone.run(sys.executable, "-m", "dvc", "config", "--local", "cache.type", "hardlink")
        clone.run(sys.executable, "-m", "dvc", "fetch", "-q")
    killed(clone, "restore", moment)
    assert moment is not CHECKING_OUT or clone.units("laptop")  # a folder is there, but not whole
    clone.papertrial("restore")
    clone.papertrial("atlas", "laptop")
    assert verdicts(clone) == {"first": ("pulled", "replicated"), "second": ("pulled", "replicated")}


def test_a_dvc_file_that_names_files_outside_its_folder_is_refused(clone, origin):
    """By its path, or by a name in the list of its files; the other artifacts arrive."""
    first, second, *_ = (Path(f"{clone.path / u.relative_to(origin.path)}.dvc") for u in origin.units("laptop"))
    clone.edit(first, f"path: {first.stem}", "path: ../../../../../workflow")
    files = [{"md5": hashlib.md5(b"").hexdigest(), "relpath": "../../../../../../escaped"}]
    listed = json.dumps(files).encode()
    name = hashlib.md5(listed).hexdigest()
    store = clone.path.parent / "papertrial-store/files/md5"
    for oid, content in ((f"{name}.dir", listed), (files[0]["md5"], b"")):
        (store / oid[:2]).mkdir(exist_ok=True)
        (store / oid[:2] / oid[2:]).write_bytes(content)
    second.write_text(re.sub(r"md5: \w+\.dir", f"md5: {name}.dir", second.read_text()))
    refused = clone.papertrial("restore", check=False)
    assert refused.returncode == 1
    for tracked in (first, second):
        assert f"{tracked.relative_to(clone.path)}: names files outside" in refused.stdout
    assert len(clone.units("laptop")) == 2 * UNITS - 2
    assert (clone.path / "workflow/Snakefile").exists() and not (clone.path.parent / "escaped").exists()
    assert not (clone.path / "escaped").exists()


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
