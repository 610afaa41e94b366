"""Artifacts: whole or not there, the same bytes every time, and nothing damaged is ever read."""

import json
import math
import pickle
import resource
import signal

import numpy as np
import pytest

from papertrial.engine import artifacts
from papertrial.engine.errors import PapertrialError

ROWS = [{"problem": "p", "method": "m", "seed": s, "nfe": k, "loss": 0.1 * s + k} for s in (0, 1) for k in (5, 10)]


def write(path, rows=ROWS, state=None):
    artifacts.write(path, {"results": rows, "traces": []}, state or {"w": np.arange(3.0)}, {"fingerprint": "x"})


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "a")
    assert artifacts.table(tmp_path / "a", "results").to_pylist() == ROWS
    assert artifacts.table(tmp_path / "a", "traces") is None
    np.testing.assert_array_equal(artifacts.state(tmp_path / "a")["w"], np.arange(3.0))
    assert artifacts.provenance(tmp_path / "a")["fingerprint"] == "x"


def test_the_same_bytes_every_time(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name)
    for file in ("results.parquet", "state.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_missing_columns_are_null_and_numpy_numbers_plain(tmp_path):
    write(tmp_path / "a", [{"seed": np.int64(0), "x": np.float64(1)}, {"seed": 1, "y": 2}])
    assert artifacts.table(tmp_path / "a", "results").to_pylist() == [
        {"seed": 0, "x": 1.0, "y": None},
        {"seed": 1, "x": None, "y": 2},
    ]


@pytest.mark.parametrize("file", ["results.parquet", "state.safetensors"])
def test_a_truncated_or_changed_file_is_refused(tmp_path, file):
    write(tmp_path / "a")
    whole = (tmp_path / "a" / file).read_bytes()
    for damaged in (whole[:-5], b"x" + whole[1:], b""):
        (tmp_path / "a" / file).write_bytes(damaged)
        with pytest.raises(artifacts.Damaged, match=file):
            artifacts.table(tmp_path / "a", "results")
            artifacts.state(tmp_path / "a")


def test_a_pickle_under_a_models_name_is_refused(tmp_path):
    write(tmp_path / "a")
    file = tmp_path / "a" / artifacts.STATE
    file.write_bytes(pickle.dumps({"w": print}))
    with pytest.raises(artifacts.Damaged, match="not what was written"):
        artifacts.state(tmp_path / "a")
    record = artifacts.provenance(tmp_path / "a")
    record["files"][artifacts.STATE] = artifacts._sha256(file)  # even if its hash is vouched for
    (tmp_path / "a" / artifacts.PROVENANCE).write_text(json.dumps(record))
    with pytest.raises(artifacts.Damaged, match="not readable"):
        artifacts.state(tmp_path / "a")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (ROWS[:2], "no rows for seed 1"),
        (ROWS[:3], "is missing"),
        ([*ROWS, ROWS[0]], "two rows"),
        ([*ROWS[:3], {**ROWS[3], "loss": math.nan}], "loss is nan for seed 1"),
        ([*ROWS[:3], {**ROWS[3], "loss": math.inf}], "loss is inf for seed 1"),
        ([*ROWS, {"seed": 2, "nfe": 5}], "seed 2, which was not asked for"),
        ([*ROWS[:3], {**ROWS[3], "loss": [1]}], "loss is a list"),
    ],
)
def test_bad_rows_are_told(rows, told):
    with pytest.raises(PapertrialError, match=told):
        artifacts.check_rows(rows, [0, 1], ["nfe"], "m on p")
    artifacts.check_rows(ROWS, [0, 1], ["nfe"], "m on p")


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    """A limit on file size stands in for the disk: the write fails in the middle."""
    previous, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    try:
        with pytest.raises(PapertrialError, match="can't be written"):
            write(tmp_path / "a", state={"w": np.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (previous, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
