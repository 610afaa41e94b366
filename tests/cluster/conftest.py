"""A Slurm for the whole session, and how a checkout is run on it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster import slurm
from tests.conftest import Checkout

# This Slurm is asked by squeue, as it keeps no accounts, and often, as its jobs are short. The rest is the profile's.
SITE = ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "20"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    """The base folder of a running Slurm; a test that asks for it is skipped where there can be none."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("a machine has one Slurm: run these tests without -n (make test-cluster)")
    pytest.importorskip("snakemake_executor_plugin_slurm")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a time limit ends the tests as Ctrl-C does: cleanly
    try:
        base = slurm.start()
    except slurm.Impossible as error:
        pytest.skip(str(error))
    yield base
    slurm.stop()


def on_slurm(checkout: Checkout, *arguments: str) -> subprocess.Popen:
    """Snakemake with the cluster's profile; its output goes to slurm.txt."""
    command = [sys.executable, "-m", "snakemake", *arguments, "--workflow-profile", "profiles/slurm", *SITE]
    with (checkout.path / "slurm.txt").open("w") as said:
        return subprocess.Popen(command, cwd=checkout.path, env=checkout.env, stdout=said, stderr=said)


def numbers(checkout: Checkout) -> dict[str, bytes]:
    """Every file of the units and base models that identity counts: not the seconds, not the provenance."""
    files = (f for kind in ("runs", "models") for f in (checkout.path / "data" / kind).rglob("*@*/*"))
    return {
        str(f.relative_to(checkout.path)): f.read_bytes()
        for f in files
        if f.is_file() and f.name not in ("timings.parquet", "provenance.json", ".snakemake_timestamp")
    }
