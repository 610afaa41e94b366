"""A new paper's skeleton runs, lints and tests as it is."""

import sys

import pytest


def test_the_skeleton_is_clean_and_its_tests_pass(checkout):
    files = [checkout.paper("first"), checkout.path / "tests/papers/toys"]
    checkout.run(sys.executable, "-m", "ruff", "check", *map(str, files))
    checkout.run(sys.executable, "-m", "ruff", "format", "--check", *map(str, files))
    done = checkout.run(sys.executable, "-m", "pytest", "tests/papers/toys", "-p", "no:cacheprovider")
    assert "6 passed" in done.stdout


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("toys/first", "exists already"),
        ("first", "is no <chapter>/<slug>"),
        ("toys/First_One", "is no <chapter>/<slug>"),
        ("../toys/first", "is no <chapter>/<slug>"),
    ],
)
def test_a_bad_name_is_told(checkout, name, told):
    refused = checkout.papertrial("new", name, check=False)
    assert refused.returncode == 1 and told in refused.stderr
