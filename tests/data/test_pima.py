"""Pima has the counts that are known of it."""

from pathlib import Path

import numpy as np
import pytest

from papertrial.data import pima
from papertrial.data.sources import obtain

DOWNLOADS = Path(__file__).parents[2] / "data" / "downloads"


def test_pima():
    if not (DOWNLOADS / pima.SOURCES[0].file).is_file():
        pytest.skip(f"{pima.SOURCES[0].file} isn't in data/downloads")
    got = pima.prepare({s.file: obtain(s, DOWNLOADS) for s in pima.SOURCES})
    assert got["x"].shape == (768, 8) and got["y"].sum() == 268
    means = got["x"].mean(axis=0)
    np.testing.assert_allclose(means[[0, 1, 5, 7]], [3.845, 120.895, 31.993, 33.241], rtol=1e-3)
    assert (got["x"][:, 4] == 0).sum() == 374
