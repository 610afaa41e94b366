"""MovieLens small has the counts that its authors published."""

from pathlib import Path

import numpy as np
import pytest

from papertrial.data import movielens
from papertrial.data.sources import obtain

DOWNLOADS = Path(__file__).parents[2] / "data" / "downloads"


def test_places_number_the_names_in_order():
    assert movielens.places([31, 7, 31, 1029]).tolist() == [1, 0, 1, 2]


@pytest.mark.slow
def test_movielens():
    (source,) = movielens.SOURCES
    if not (DOWNLOADS / source.file).is_file():
        pytest.skip(f"{source.file} isn't in data/downloads")
    got = movielens.prepare({source.file: obtain(source, DOWNLOADS)})
    user, film, rating = got["user"], got["film"], got["rating"]
    assert len(user) == len(film) == len(rating) == len(got["time"]) == 100_004
    assert np.bincount(user).min() == 20 and len(np.unique(user)) == 671 and len(np.unique(film)) == 9_066
    assert len(np.unique(user * 9_066 + film)) == 100_004
    assert set(rating) == set(np.arange(1, 11) / 2)
