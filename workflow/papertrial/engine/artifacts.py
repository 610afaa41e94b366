"""Artifacts on disk: a folder of parquet, safetensors and json, whole and checked or not there at all.

results.parquet     rows: problem, method, seed, cells, metrics
traces.parquet      series for figures                                  (where there are any)
trials.parquet      every setting tried in tuning, with its value       (where there are any)
timings.parquet     measured seconds; outside identity and comparison
state.safetensors   arrays to keep                                      (where there are any)
provenance.json     how it was made, and the sha256 of the other files

Nothing is ever unpickled.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from papertrial.engine import paths
from papertrial.engine.errors import PapertrialError
from papertrial.engine.results import Row

PROVENANCE = "provenance.json"
STATE = "state.safetensors"


class Damaged(PapertrialError):
    """An artifact that can't be read as what was written."""


def write(
    path: str | Path,
    tables: Mapping[str, list[Row]],
    state: Mapping[str, np.ndarray],
    provenance: Mapping[str, Any],
) -> None:
    """Write an artifact beside its place, then move it there in one step.

    Raises:
        PapertrialError: the disk is full, or the folder can't be written; nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{path.name}.*"):
            shutil.rmtree(stale, ignore_errors=True)
        temporary.mkdir()
        for name, rows in tables.items():
            if rows:
                pq.write_table(to_table(rows), temporary / f"{name}.parquet")
        if state:
            (temporary / STATE).write_bytes(packed(state))
        hashes = {f.name: _sha256(f) for f in sorted(temporary.iterdir())}
        text = json.dumps({**provenance, "files": hashes}, indent=1, default=str)
        (temporary / PROVENANCE).write_text(text + "\n")
        for file in temporary.iterdir():
            _flush(file)
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise PapertrialError(f"{path}: can't be written: {error.strerror or error}") from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def packed(state: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as the bytes of a safetensors file."""
    from safetensors.numpy import save

    return save({k: np.ascontiguousarray(v) for k, v in state.items()})


def to_table(rows: list[Row]) -> pa.Table:
    """Rows as columns in order of appearance; what a row lacks is null."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return pa.table({c: pa.array([_plain(row.get(c)) for row in rows]) for c in columns})


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic | np.ndarray) and np.ndim(value) == 0 else value


def check_rows(rows: list[Row], seeds: Iterable[int], cells: list[str], what: str) -> None:
    """Finite numbers, every seed with the same cells, no row twice.

    Raises:
        PapertrialError: says what is wrong with which row of ``what``.
    """
    seeds = set(seeds)
    by_seed: dict[int, set] = {}
    for row in rows:
        if row.get("seed") not in seeds:
            raise PapertrialError(f"{what}: a row carries seed {row.get('seed')!r}, which was not asked for")
        for key, value in row.items():
            value = _plain(value)
            if isinstance(value, int | float) and not math.isfinite(value):
                raise PapertrialError(f"{what}: {key} is {value} for seed {row['seed']}; results must be finite")
            if not isinstance(value, int | float | str):
                raise PapertrialError(f"{what}: {key} is a {type(value).__name__}; rows hold numbers and names")
        cell = tuple(_plain(row.get(c)) for c in cells)
        if cell in by_seed.setdefault(row["seed"], set()):
            raise PapertrialError(f"{what}: seed {row['seed']} has two rows for {dict(zip(cells, cell, strict=True))}")
        by_seed[row["seed"]].add(cell)
    lost = sorted(seeds - set(by_seed))
    if lost:
        raise PapertrialError(f"{what}: no rows for seed {', '.join(map(str, lost))}")
    whole = set.union(*by_seed.values()) if by_seed else set()
    for seed, found in by_seed.items():
        if found != whole:
            example = dict(zip(cells, next(iter(whole - found)), strict=True))
            raise PapertrialError(f"{what}: seed {seed} has {len(found)} of {len(whole)} rows; {example} is missing")


def provenance(path: str | Path) -> dict[str, Any]:
    """An artifact's provenance.

    Raises:
        Damaged: it can't be read.
    """
    file = Path(path) / PROVENANCE
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise Damaged(f"{file}: not readable ({error}); delete {path} and run again") from None


def table(path: str | Path, name: str) -> pa.Table | None:
    """One table of an artifact, checked against the hash in its provenance; None if it has none.

    Raises:
        Damaged: the file is not what was written.
    """
    file = _checked(path, f"{name}.parquet")
    return None if file is None else _read(file, lambda: pq.read_table(file))


def state(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays an artifact keeps, checked likewise; empty if it has none."""
    file = _checked(path, STATE)
    if file is None:
        return {}
    from safetensors.numpy import load_file

    return _read(file, lambda: load_file(file))


def verify(path: str | Path) -> None:
    """Check every file of an artifact against the hash in its provenance.

    Raises:
        Damaged: one is missing or not what was written.
    """
    for name in provenance(path).get("files", {}):
        _checked(path, name)


def quarantine(path: str | Path) -> Path:
    """Move a damaged artifact out of the way, so that the next run makes it again."""
    target = paths.SCRATCH / "damaged" / f"{path}"
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, target)
    return target


def _checked(path: str | Path, name: str) -> Path | None:
    expected = provenance(path).get("files", {}).get(name)
    if expected is None:
        return None
    file = Path(path) / name
    try:
        found = _sha256(file)
    except OSError as error:
        raise Damaged(f"{file}: {error.strerror}; delete {path} and run again") from None
    if found != expected:
        raise Damaged(f"{file}: its content is not what was written (sha256); delete {path} and run again")
    return file


def _read(file: Path, read: Any) -> Any:
    try:
        return read()
    except Exception as error:  # pyarrow and safetensors raise types of their own
        raise Damaged(f"{file}: not readable ({error}); delete {file.parent} and run again") from None


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _flush(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
