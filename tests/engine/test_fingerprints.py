"""Fingerprints: what counts and what doesn't; and imports point one way."""

import ast

import grimp
import pytest

from papertrial.engine import fingerprints


def hash_of(text: str) -> str:
    return "".join(fingerprints._canonical(ast.parse(text)))


def test_comments_docstrings_and_formatting_do_not_count():
    one = 'def f(x):\n    """Doc."""\n    return x + 1  # why\n'
    other = "def f( x ):\n\n    return (x\n      + 1)\n"
    assert hash_of(one) == hash_of(other)


@pytest.mark.parametrize("change", ["return x + 2", "return x - 1", "return y + 1", "x += 1; return x"])
def test_code_counts(change):
    assert hash_of("def f(x):\n    return x + 1\n") != hash_of(f"def f(x):\n    {change}\n")


def test_a_string_that_is_no_docstring_counts():
    assert hash_of("x = 'a'") != hash_of("x = 'b'")


def test_the_order_of_keys_does_not_count():
    assert fingerprints.digest({"a": 1, "b": [1, 2]}) == fingerprints.digest({"b": [1, 2], "a": 1})
    assert fingerprints.digest({"a": 1}) != fingerprints.digest({"a": 2})


def test_a_closure_has_its_imports_and_its_packages_but_not_the_downloader():
    closure = fingerprints.closure("papertrial.data.adult")
    assert {"papertrial", "papertrial.data", "papertrial.data.adult"} <= set(closure)
    assert not fingerprints.OUTSIDE & set(closure)


LAYERS = ("papers", "models", "methods", "testbeds", "data", "atlas", "engine")
MAY_IMPORT = {
    "engine": {"engine", "data.sources"},
    "data": {"data", "engine.errors"},
    "testbeds": {"testbeds", "methods", "data", "engine.results"},
    "methods": {"methods", "testbeds", "engine.results"},
    "models": {"models", "methods", "testbeds", "data", "engine.results", "engine.checkpoints"},
    "papers": {
        "papers",
        "models",
        "methods",
        "testbeds",
        "data",
        "engine.results",
        "engine.evidence",
        "engine.verdicts",
    },
    "atlas": {"atlas", "engine"},
}


def test_imports_point_one_way():
    graph = grimp.build_graph("papertrial", cache_dir=None)
    wrong = []
    for module in sorted(graph.modules):
        layer = next((x for x in LAYERS if module.startswith(f"papertrial.{x}")), None)
        for target in sorted(graph.find_modules_directly_imported_by(module)):
            name = target.removeprefix("papertrial.")
            allowed = layer is None or any(name == a or name.startswith(f"{a}.") for a in MAY_IMPORT[layer])
            own_paper = (
                layer != "papers" or not name.startswith("papers") or name.split(".")[:3] == module.split(".")[1:4]
            )
            if not (allowed and own_paper):
                wrong.append(f"{module} -> {target}")
    assert not wrong, "imports point papers -> methods, models, testbeds, data -> the engine's small types"
