"""Every data set has the shapes its docstring promises and the counts that its authors published."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from papertrial import data
from papertrial.data import adult, attrition, compas, hmda, lending_club, rfiles, tables
from papertrial.data.sources import Address, Debian, Installed, Npm, PyPI, Source, obtain
from papertrial.engine.errors import PapertrialError

DOWNLOADS = Path(__file__).parents[2] / "data" / "downloads"
MODULES = [importlib.import_module(f"papertrial.data.{module.name}") for module in pkgutil.iter_modules(data.__path__)]
DATASETS = {module.__name__.rpartition(".")[2]: module for module in MODULES if hasattr(module, "prepare")}


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """arrays(name): the data set's arrays; skips where its files would have to be downloaded."""
    kept = {}

    def load(name: str) -> dict[str, np.ndarray]:
        if name not in kept:
            files = {}
            for source in DATASETS[name].SOURCES:
                if (DOWNLOADS / source.file).is_file():
                    files[source.file] = obtain(source, DOWNLOADS)
                elif isinstance(source.ways[0], Installed):
                    files[source.file] = obtain(source, tmp_path_factory.mktemp("downloads"))
                else:
                    pytest.skip(f"{source.file} isn't in data/downloads")
            kept[name] = DATASETS[name].prepare(files)
        return kept[name]

    return load


# --- declarations


@pytest.mark.parametrize("name", DATASETS)
def test_declaration(name):
    module = DATASETS[name]
    assert module.__doc__ and "Arrays" in module.__doc__ and "Origin:" in module.__doc__ and "icence" in module.__doc__
    assert module.SOURCES
    for source in module.SOURCES:
        assert isinstance(source, Source)
        assert all(len(bytes.fromhex(digest)) == 32 for digest in source.accepted)
        assert all(isinstance(way, PyPI | Npm | Debian | Installed | Address) for way in source.ways)
        assert len(source.ways) >= 2, "a machine without that client needs another way"
        assert all(way.url.startswith("https://") for way in source.ways if isinstance(way, Address))


def test_a_file_means_the_same_everywhere():
    """Data sets that share a file agree on it, and every other file has a place of its own."""
    known: dict[str, Source] = {}
    for module in DATASETS.values():
        for source in module.SOURCES:
            assert known.setdefault(source.file, source) == source


def test_importing_a_data_set_is_cheap():
    modules = ", ".join(f"papertrial.data.{name}" for name in DATASETS)
    heavy = "{'pandas', 'rdata', 'xarray', 'sklearn', 'torch', 'scipy'}"
    code = f"import sys, {modules}; sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": "workflow"},
                          cwd=Path(__file__).parents[2])  # fmt: skip
    assert done.returncode == 0, done.stderr


# --- readers


def test_columns_of_a_table():
    table = tables.columns("a, b\n1, x\n\n2, y\n")
    assert table == {"a": ["1", "2"], "b": ["x", "y"]}
    assert tables.columns("1,x\n", ("a", "b")) == {"a": ["1"], "b": ["x"]}
    with pytest.raises(PapertrialError, match=r"row 2 .* 1 fields, not 2"):
        tables.columns("a,b\n1,x\n2\n")


def test_numbers_and_codes():
    table = {"a": ["1", "", "NA", "2.5"], "b": ["y", "x", "x", "y"]}
    numbers = tables.numbers(table, ("a",))
    np.testing.assert_array_equal(numbers, [[1], [np.nan], [np.nan], [2.5]])
    np.testing.assert_array_equal(tables.codes(table, {"b": ("x", "y")}), [[1], [0], [0], [1]])
    with pytest.raises(PapertrialError, match="column b has the unknown value 'y'"):
        tables.codes(table, {"b": ("x",)})


def test_fashion_mnist_layout():
    from papertrial.data import fashion_mnist

    pixels = np.arange(2 * 28 * 28, dtype=np.uint8)
    np.testing.assert_array_equal(fashion_mnist.images(bytes(16) + pixels.tobytes()).ravel(), pixels)
    np.testing.assert_array_equal(fashion_mnist.labels(bytes(8) + bytes([3, 9])), [3, 9])


def test_mnist_levels_are_exact():
    """Three decimals of level / 255 give the level back, rounded up or down."""
    from papertrial.data import mnist

    levels = np.arange(784) % 256
    for off in (-0.0005, 0.0005):
        np.testing.assert_array_equal(mnist.pixels(list(levels / 255 + off)).ravel(), levels)


def test_adult_rows():
    row = "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, 2174, 0, 40, "
    text = f"{row}United-States, <=50K\n{row}?, >50K.\n\n"
    got = adult.split("test", text)
    np.testing.assert_array_equal(got["label_test"], [0, 1])
    np.testing.assert_array_equal(got["numeric_test"], [[39, 77516, 13, 2174, 0, 40]] * 2)
    values = [column[code] for column, code in zip(adult.CATEGORICAL.values(), got["categorical_test"][1], strict=True)]
    assert values == ["State-gov", "Bachelors", "Never-married", "Adm-clerical", "Not-in-family", "White", "Male", "?"]


@pytest.mark.parametrize("compress", ["zlib", "bz2", "xz"])
def test_records_of_a_lazy_load_data_base(compress):
    import bz2
    import lzma
    import zlib

    plain = b"a record" * 20
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
    body = {
        "zlib": zlib.compress(plain),
        "bz2": b"2" + bz2.compress(plain),
        "xz": b"Z" + lzma.compress(plain, lzma.FORMAT_RAW, filters=filters),
    }[compress]
    assert rfiles._unpack_record(len(plain).to_bytes(4, "big") + body) == plain


# --- the data themselves


@pytest.mark.slow
@pytest.mark.parametrize("name", DATASETS)
def test_arrays_can_be_stored(arrays, name):
    """Plain numbers in C order; deterministic."""
    for key, array in arrays(name).items():
        assert array.dtype in (np.uint8, np.int64, np.float64), key
        assert array.flags.c_contiguous and array.size, key


@pytest.mark.slow
@pytest.mark.parametrize("module", [adult, compas, hmda, attrition, lending_club], ids=lambda m: m.__name__)
def test_columns_keep_their_public_ranges(arrays, module):
    got = arrays(module.__name__.rpartition(".")[2])
    for key in (key for key in got if key.startswith("numeric")):
        low, high = np.array(list(module.NUMERIC.values())).T
        assert got[key].shape[1] == len(module.NUMERIC)
        assert (got[key] >= low).all() and (got[key] <= high).all()
    for key in (key for key in got if key.startswith("categorical")):
        assert got[key].shape[1] == len(module.CATEGORICAL)
        assert (got[key] >= 0).all() and (got[key] < [len(values) for values in module.CATEGORICAL.values()]).all()


@pytest.mark.slow
def test_fashion_mnist(arrays):
    got = arrays("fashion_mnist")
    assert got["x_train"].shape == (60000, 28, 28) and got["x_test"].shape == (10000, 28, 28)
    np.testing.assert_array_equal(np.bincount(got["y_train"]), [6000] * 10)
    np.testing.assert_array_equal(np.bincount(got["y_test"]), [1000] * 10)
    assert got["x_train"].mean() / 255 == pytest.approx(0.2860, abs=5e-5)  # the customary normalisation constants
    assert got["x_train"].std() / 255 == pytest.approx(0.3530, abs=5e-5)


@pytest.mark.slow
def test_mnist(arrays):
    got = arrays("mnist")
    assert got["x"].shape == (10000, 28, 28)
    np.testing.assert_array_equal(np.bincount(got["y"]), [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978])
    assert set(np.unique(got["x"])) == set(range(256))
    assert got["x"].mean() / 255 == pytest.approx(0.1307, abs=2e-3)  # of all 60,000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "breast_cancer", "diabetes"])
def test_equal_to_scikit_learn(arrays, name):
    sklearn = pytest.importorskip("sklearn.datasets")
    options = {"scaled": False} if name == "diabetes" else {}
    x, y = getattr(sklearn, f"load_{name}")(return_X_y=True, **options)
    got = arrays(name)
    np.testing.assert_array_equal(got["x"].reshape(len(x), -1), x)
    np.testing.assert_array_equal(got["y"], y)


@pytest.mark.slow
def test_adult(arrays):
    got = arrays("adult")
    assert got["numeric_train"].shape == (32561, 6) and got["numeric_test"].shape == (16281, 6)
    assert got["label_train"].mean() == pytest.approx(0.2408, abs=5e-5)
    assert got["label_test"].mean() == pytest.approx(0.2362, abs=5e-5)
    names = list(adult.CATEGORICAL)
    sex = got["categorical_train"][:, names.index("sex")]
    assert got["label_train"][sex == 0].mean() == pytest.approx(0.1095, abs=5e-5)
    assert got["label_train"][sex == 1].mean() == pytest.approx(0.3057, abs=5e-5)
    unknown = np.array([len(v) - 1 if v[-1] == "?" else -1 for v in adult.CATEGORICAL.values()])
    assert (got["categorical_train"] == unknown).any(axis=1).sum() == 32561 - 30162  # adult.names: without unknowns
    assert (got["categorical_test"] == unknown).any(axis=1).sum() == 16281 - 15060
    for split in ("train", "test"):  # the two columns say the same
        education = got[f"categorical_{split}"][:, names.index("education")]
        np.testing.assert_array_equal(education + 1, got[f"numeric_{split}"][:, 2])


@pytest.mark.slow
def test_compas(arrays):
    got = arrays("compas")
    assert got["numeric"].shape == (7214, 5)
    assert got["label"].sum() == 3251
    race = got["categorical"][:, list(compas.CATEGORICAL).index("race")]
    np.testing.assert_array_equal(np.bincount(race), [3696, 2454, 637, 32, 18, 377])
    assert (got["is_recid"] >= got["label"]).all()
    assert np.isnan(got["days_b_screening_arrest"]).sum() == 307
    assert (np.abs(got["days_b_screening_arrest"]) <= 30).sum() == 6172  # ProPublica's count
    high, black, white = got["decile_score"] >= 5, race == 0, race == 1
    for group, rate in ((black, 0.4485), (white, 0.2345)):  # ProPublica's false positive rates
        assert high[group & (got["label"] == 0)].mean() == pytest.approx(rate, abs=5e-5)


@pytest.mark.slow
def test_hmda(arrays):
    got = arrays("hmda")
    assert got["numeric"].shape == (2380, 6)
    assert got["label"].sum() == 285
    black = got["categorical"][:, list(hmda.CATEGORICAL).index("black")]
    assert got["label"][black == 1].mean() == pytest.approx(0.283, abs=5e-4)  # Stock and Watson, chapter 11
    assert got["label"][black == 0].mean() == pytest.approx(0.093, abs=5e-4)


@pytest.mark.slow
def test_austen(arrays):
    text = {novel: bytes(array).decode() for novel, array in arrays("austen").items()}
    lines = {novel: len(t.split("\n")) for novel, t in text.items()}
    assert lines == {
        "sense": 12624, "pride": 13030, "mansfield": 15349, "emma": 16235, "northanger": 7856, "persuasion": 8328,
    }  # fmt: skip
    assert "It is a truth universally acknowledged, that a single man in possession" in text["pride"]
    assert text["emma"].startswith("EMMA\n") and "Emma Woodhouse, handsome, clever, and rich" in text["emma"]


@pytest.mark.slow
def test_attrition_and_lending_club(arrays):
    got = arrays("attrition")
    assert got["numeric"].shape == (1470, 16) and got["categorical"].shape == (1470, 14) and got["label"].sum() == 237
    gender = got["categorical"][:, list(attrition.CATEGORICAL).index("Gender")]
    np.testing.assert_array_equal(np.bincount(gender), [588, 882])
    got = arrays("lending_club")
    assert got["numeric"].shape == (9857, 17) and got["categorical"].shape == (9857, 5) and got["label"].sum() == 517
    rate, grade = got["numeric"][:, 1], got["categorical"][:, list(lending_club.CATEGORICAL).index("sub_grade")]
    assert np.corrcoef(rate, grade)[0, 1] > 0.95  # the riskier the grade, the higher the interest
