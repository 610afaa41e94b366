"""Cards and config: what is valid, and how a mistake is told."""

from importlib import resources
from pathlib import Path

import pytest
import yaml

from papertrial.engine.cards import Card, load_card, parse
from papertrial.engine.config import Config, load_config, select
from papertrial.engine.docs import config_readme
from papertrial.engine.errors import PapertrialError
from papertrial.engine.models import load_model_card
from papertrial.engine.units import cut, runs

ROOT = Path(__file__).parents[2]
CARDS = sorted((ROOT / "config/papers").glob("*/*.yaml"))


@pytest.fixture
def data():
    text = resources.files("papertrial.engine.skeleton").joinpath("card.yaml").read_text()
    return {**yaml.safe_load(text), "slug": "toy", "chapter": "toys"}


@pytest.mark.parametrize("path", CARDS, ids=lambda p: p.stem)
def test_every_card_of_the_project_is_valid_at_every_scale(path):
    card = load_card(path)
    for scale in card.scales:
        units = cut(card, scale)
        assert sum(len(r) for r in units.values()) >= len(runs(card, scale))
    assert card.controls(card.claims[0].id), "the headline claim has a control"


@pytest.mark.parametrize("path", sorted((ROOT / "config/models").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_base_model_of_the_project_is_valid(path):
    assert load_model_card(path).name == path.stem


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"claimz": []}, "f.yaml: unknown key 'claimz'; did you mean 'claims'?"),
        ({"claims": []}, "f.yaml: claims: List should have at least 1 item"),
        ({"data": "made up"}, "f.yaml: data: Input should be 'real', 'simulated'"),
        ({"scales": {"smoke": {"seeds": 1}}}, "laptop, paper missing"),
        ({"needs": {"dataset": []}}, "unknown key 'needs.dataset'; did you mean 'datasets'?"),
        ({"methods": {"a": {"role": "control"}}}, "says which method it breaks"),
        ({"problems": {"p": {"methods": ["momentun"]}}}, "no such name 'momentun'; did you mean 'momentum'?"),
        (
            {"tune": [{"grids": {"momentum": {"a": [1, 2]}}, "seeds": [0], "metric": "x", "trials": 3}]},
            "the grid of momentum has 2 settings, but every method gets 3 trials",
        ),
    ],
)
def test_a_mistake_names_file_key_and_the_nearest_valid_one(data, change, told):
    with pytest.raises(PapertrialError) as error:
        parse(Card, {**data, **change}, "f.yaml")
    assert told in str(error.value)


def test_the_path_says_slug_and_chapter(data, tmp_path):
    file = tmp_path / "toys" / "other.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(PapertrialError, match="slug is 'toy', but the path says 'other'"):
        load_card(file)


def test_units_cover_every_run_once(data):
    for how in (
        "paper",
        "method",
        "problem",
        {"a": {"methods": ["momentum", "descent"]}, "b": {"methods": ["no-momentum"]}},
    ):
        data["scales"]["smoke"]["units"] = how
        units = cut(parse(Card, data, "f.yaml"), "smoke")
        assert sorted(r["method"] for u in units.values() for r in u) == ["descent", "momentum", "no-momentum"]
    data["scales"]["smoke"]["units"] = "run"
    units = cut(parse(Card, data, "f.yaml"), "smoke")
    assert len(units) == 9 and all(len(u) == 1 and len(u[0]["seeds"]) == 1 for u in units.values())


def test_a_run_in_no_unit_is_an_error(data):
    data["scales"]["smoke"]["units"] = {"a": {"methods": ["momentum"]}}
    with pytest.raises(PapertrialError, match="the run of descent on quadratic belongs to no unit"):
        cut(parse(Card, data, "f.yaml"), "smoke")


def test_settings_of_a_run(data):
    data["methods"]["momentum"] |= {"settings": {"a": 1, "b": 2}, "on": {"quadratic": {"b": 3}}}
    data["scales"]["smoke"]["problems"] = {"quadratic": {"seeds": [4, 7], "settings": {"kappa": 5}}}
    run = runs(parse(Card, data, "f.yaml"), "smoke", extra_seeds=2)[0]
    assert run["settings"] == {"a": 1, "b": 3}
    assert run["problem"] == {"dimension": 10, "kappa": 5, "cap": 5000, "name": "quadratic"}
    assert run["seeds"] == [4, 7, 8, 9]


def test_config(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("scale: smoke\n")
    assert load_config(file, {"papers": "convex/*, sppo"}).papers == ["convex/*", "sppo"]
    for change, told in (
        ({"scal": "smoke"}, "did you mean 'scale'?"),
        ({"scale": "huge"}, "scale: Input should be 'smoke', 'laptop' or 'paper'"),
        ({"device": "tpu"}, "device: Input should be"),
    ):
        with pytest.raises(PapertrialError) as error:
            load_config(file, change)
        assert told in str(error.value) and str(file) in str(error.value)


def test_selection():
    papers = ["convex/a-b", "trust/c"]
    assert select(["convex/*", "c"], papers) == papers
    with pytest.raises(PapertrialError, match="no paper is called 'a-bb'; did you mean 'a-b'"):
        select(["a-bb"], papers)


def test_the_settings_page_is_what_the_models_say():
    assert (ROOT / "config/README.md").read_text() == config_readme(), "run make docs"
    assert all(key in config_readme() for key in Config.model_fields)
