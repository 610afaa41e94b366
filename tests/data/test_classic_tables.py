"""Spam, Boston, magic and letter have the counts that their authors published."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from papertrial.data.sources import obtain

DOWNLOADS = Path(__file__).parents[2] / "data" / "downloads"


def load(name):
    """The data set's arrays; skips where its file would have to be downloaded."""
    module = importlib.import_module(f"papertrial.data.{name}")
    missing = [s.file for s in module.SOURCES if not (DOWNLOADS / s.file).is_file()]
    if missing:
        pytest.skip(f"{missing[0]} isn't in data/downloads")
    return module, module.prepare({s.file: obtain(s, DOWNLOADS) for s in module.SOURCES})


def means(module, got, *names):
    return [got["x"][:, module.FEATURES.index(name)].mean() for name in names]


@pytest.mark.slow
def test_spam():
    module, got = load("spam")
    assert got["x"].shape == (4601, 57) and got["y"].sum() == 1813
    # spambase.DOCUMENTATION lists the means
    np.testing.assert_allclose(means(module, got, "make", "you", "charDollar", "capitalTotal"),
                               [0.10455, 1.6621, 0.075811, 283.29], rtol=1e-3)  # fmt: skip


@pytest.mark.slow
def test_boston():
    module, got = load("boston")
    assert got["x"].shape == (506, 13) and got["y"].shape == (506,)
    assert (got["y"] == 50).sum() == 16 and got["y"].mean() == pytest.approx(22.53, abs=0.01)
    np.testing.assert_allclose(means(module, got, "rm", "lstat", "chas"), [6.2846, 12.653, 35 / 506], rtol=1e-3)


@pytest.mark.slow
def test_magic():
    module, got = load("magic")
    assert got["x"].shape == (19020, 10) and np.bincount(got["y"]).tolist() == [6688, 12332]
    np.testing.assert_allclose(means(module, got, "length", "alpha"), [53.25, 27.65], rtol=1e-3)
    assert (got["x"][:, module.FEATURES.index("alpha")] <= 90).all()  # degrees


@pytest.mark.slow
def test_letter():
    _, got = load("letter")
    assert got["x"].shape == (20000, 16) and got["x"].min() == 0 and got["x"].max() == 15
    counts = np.bincount(got["y"])
    assert counts[[0, 1, 25]].tolist() == [789, 766, 734] and counts.sum() == 20000
