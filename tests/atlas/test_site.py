"""The atlas without a browser: its HTML, its counts, its data, and what is redrawn when."""

import json
import re
import sys
from html.parser import HTMLParser
from types import ModuleType
from urllib.parse import unquote

import pandas as pd
import pytest

from papertrial.atlas import ground, neighbours, pages, views
from papertrial.atlas.figures import draw
from papertrial.atlas.forest import strips
from papertrial.atlas.site import SCHEMA, _judged, _published
from papertrial.atlas.wording import duration, number
from papertrial.engine import judge
from papertrial.engine import record as recorded
from papertrial.engine.cards import Needs
from papertrial.engine.evidence import Evidence
from papertrial.engine.verdicts import VERDICTS

EMPTY = {"meta", "link", "input", "img", "br"}


class Reader(HTMLParser):
    """Tags that open and close, ids, links, and the text of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.links, self.tags, self.faults = [], [], [], [], []
        self.feed(text)
        self.close()
        self.faults += self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src"):
                self.links.append(value)
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}>")


def every_page(site):
    return {"index.html": site.index(), "across.html": site.across(), "convex/x.html": site.paper(0)}


def test_html_is_well_formed(site):
    for name, text in every_page(site).items():
        read = Reader(text)
        assert not read.faults, (name, read.faults[:5])
        assert len(read.ids) == len(set(read.ids)), name
        unnamed = [a for tag, a in read.tags if tag == "img" and not a.get("alt")]
        assert not unnamed


def test_html_is_valid(site):
    html5lib = pytest.importorskip("html5lib")
    for name, text in every_page(site).items():
        parser = html5lib.HTMLParser()
        parser.parse(text)
        assert not parser.errors, (name, parser.errors[:3])


def test_every_link_leads_somewhere(site):
    first = next(iter(site.cards))
    for name in ("index.html", "across.html", f"{first}.html"):
        file = site.folder / name
        read = Reader(file.read_text())
        for link in read.links:
            if link.startswith(("https://arxiv.org/", "data:")):
                continue
            path, _, fragment = link.partition("#")
            target = (file.parent / path.partition("?")[0]).resolve() if path else file
            drawn = target.stem not in {c.slug for c in list(site.cards.values())[3:]}  # the site has three pages
            assert target.exists() or not drawn, link
            if fragment and drawn:
                assert unquote(fragment) in Reader(target.read_text()).ids if target != file else fragment in read.ids


def test_words_of_cards_and_results_are_never_markup(site):
    for name, text in every_page(site).items():
        read = Reader(text)
        own = {"index.html": 1, "across.html": 0}.get(name, 1)
        assert sum(tag == "script" for tag, _ in read.tags) == own
        assert not [a for _, a in read.tags if any(k.startswith("on") for k in a)]
        assert "&lt;script&gt;alert" in text and "<b onclick" not in text


def test_counts_add_up_and_nothing_is_hidden(site):
    text = site.index()
    told = [int(n) for n in re.findall(r"<li><b>(\d+)</b>", text)]
    rows = re.findall(r'<tr id="([^"]+)" [^>]*data-verdict="([^"]+)"', text)
    assert len(told) == len(VERDICTS) and sum(told) == len(rows) == 1000
    assert dict(zip(VERDICTS, told, strict=True)) == {v: sum(verdict == v for _, verdict in rows) for v in VERDICTS}
    assert len({row for row, _ in rows}) == 1000
    squares = re.findall(r'<i class="v-([a-z-]+)" data-for="([^"]+)"', text)
    assert {(row, kind.replace("-", " ")) for kind, row in squares} == set(rows)
    by_chapter = [int(n) for n in re.findall(r"papers, (\d+) claims</p>", text)]
    assert sum(by_chapter) == 1000
    only = pages.index("laptop", site.records[:1], site.cards)
    assert all(verdict in only for verdict in VERDICTS)  # with no claim of that kind, the count says 0


def test_index_of_222_papers_is_small(tmp_path, site):
    assert len(type(site)(tmp_path, 222).index().encode()) < 1_200_000


def test_claims_and_verdicts_come_first_and_the_forest_before_any_table(site):
    text = site.paper(1)
    assert text.index('class="claims"') < text.index('class="forest"') < text.index("<table")
    for claim in site.records[1]["claims"]:
        assert text.index(site.cards["alignment/paper-001"].claims[0].claim) < text.index("Every criterion")
        assert f'id="{claim["id"]}"' in text
    assert "Energy</dt><dd>not measured" in text
    measured = {"cost": {"energy_j": 12.5}}
    assert pages._energy([measured, measured]) == 25.0
    assert pages._energy([measured, {"cost": {}}]) is None


def test_strips_have_the_threshold_in_the_middle_and_the_needed_side_on_the_right(make):
    def strip(controls=(), **changes):
        held = [{"criteria": [c]} for c in controls]
        return strips({"criteria": [make.criterion(**changes)], "controls": held})[0]

    passing, failing = strip(), strip(estimate=2.0, low=1.5, high=2.6, passed=False)
    assert 50 < passing.ours.low < passing.ours.at < passing.ours.high <= 94
    assert 6 <= failing.ours.low < failing.ours.at < failing.ours.high < 50
    below = strip(estimate=0.1, low=0.05, high=0.2, op="<=", threshold=0.5)
    assert 50 < below.ours.low < below.ours.at < below.ours.high and not below.logarithmic
    assert strip([make.criterion(estimate=0.01, low=None, high=None)]).logarithmic
    assert not strip([make.criterion(estimate=-5.0)]).logarithmic
    exact = strip(estimate=3.0, low=None, high=None, op=">=")
    assert exact.ours == (50, None, None)
    assert strip(estimate=None, low=None, high=None, passed=None).ours.at is None
    lacks_one = {
        "criteria": [make.criterion(name="at 10"), make.criterion(name="at 20"), make.criterion(name="at 20", op="<")],
        "controls": [{"criteria": [make.criterion(name="at 20", estimate=1.0)]}],
    }
    assert [len(s.controls) for s in strips(lacks_one)] == [0, 1, 0]  # held by name, not by place
    assert "needed > 3: passes; control 1" in strip([make.criterion(estimate=1.0)]).words


def test_numbers_read_well():
    assert [number(x) for x in (None, 0, 978.93, 26162, -0.0561077, 8.4934e-4, 3e9)] == [
        "–", "0", "978.9", "26,162", "−0.05611", "8.49×10⁻⁴", "3×10⁹",
    ]  # fmt: skip
    assert [duration(s) for s in (0.42, 40, 720, 11000)] == ["0.42 s", "40 s", "12 min", "3.1 h"]


def test_bibtex(make):
    entry = pages.bibtex(make.card("x", title="Gains & losses of 5% {a}", arxiv="2401.00001", year=2024))
    assert entry.startswith("@misc{x,\n") and r"{{Gains \& losses of 5\% {a}}}" in entry
    assert "eprint = {2401.00001}" in entry and entry.count("{") == entry.count("}")


def test_neighbours_share_most_and_rarest_first(make):
    cards = {
        "a/one": make.card(
            "one", testbed="gmm2d + fm16 (solver lab)", needs=Needs(datasets=["mnist"], models=["fm16"])
        ),
        "a/two": make.card("two", testbed="fm16"),
        "a/three": make.card("three", needs=Needs(datasets=["mnist"])),
        "a/four": make.card("four", needs=Needs(datasets=["mnist"])),
        "a/five": make.card("five"),
    }
    assert neighbours.testbeds(cards["a/one"]) == ["gmm2d", "fm16"]
    kin = neighbours.neighbours("a/one", cards, neighbours.holders(cards))
    assert [n["paper"] for n in kin] == ["a/two", "a/four", "a/three"]
    assert kin[0]["shared"] == ["testbed fm16"] and kin[1]["shared"] == ["data set mnist"]
    assert neighbours.neighbours("a/five", cards, neighbours.holders(cards)) == []


def rows(method, means, problem="p", metric="loss", seeds=5, **more):
    return pd.DataFrame(
        [
            {"problem": problem, "method": method, "seed": s, "nfe": nfe, metric: mean + 0.01 * s, **more}
            for nfe, mean in means.items()
            for s in range(seeds)
        ]
    )


def test_a_view_takes_what_has_run(make):
    cards = {"a/one": make.card("one"), "a/two": make.card("two"), "a/three": make.card("three")}
    view = views.View("v", "V", problem="p", x="nfe", y="loss", caption="", alt="", log="x")
    shared = rows("reference", {10: 0.5}, shared=True)
    one = pd.concat([rows("momentum", {10: 1.0, 20: 0.8}), rows("no-momentum", {10: 9.0}), shared])
    two = pd.concat([rows("momentum", {10: 2.0}), rows("descent", {10: 1.5}), shared])
    assert views.table(view, {}, cards).empty
    assert views.table(view, {"a/three": rows("m", {1: 1.0}, problem="other")}, cards).empty
    drawn = views.table(view, {"a/one": one, "a/two": two, "a/three": rows("m", {1: 1.0}, metric="acc")}, cards)
    assert set(drawn["label"]) == {"heavy ball (one)", "heavy ball (two)", "gradient descent", "reference"}
    assert (drawn["label"] == "reference").sum() == 5  # once, though it stands in two tables
    assert drawn.groupby("label")["proposed"].first().to_dict()["heavy ball (one)"]


def test_a_view_with_a_table_shows_means_at_its_values(tmp_path, make):
    view = views.View("v", "V", problem="p", x="nfe", y="loss", caption="", alt="", at=(10, 20))
    told = views.draw(
        view,
        views.table(
            view,
            {"a/one": pd.concat([rows("momentum", {10: 1.0, 20: 0.8, 30: 0.1}), rows("descent", {20: 0.4})])},
            {"a/one": make.card("one")},
        ),
        tmp_path,
    )
    assert told["columns"] == [10, 20]
    found = {row["label"]: row["cells"] for row in told["rows"]}
    assert found == {"heavy ball": [1.02, 0.82], "gradient descent": [None, 0.42]}  # means over the seeds


def test_registered_views_are_drawn(tmp_path, make):
    cards = {"a/one": make.card("one")}
    for view in views.VIEWS:
        made = rows("momentum", {10: 1.0, 20: 0.8}, problem=view.problem, metric=view.y)
        level = rows("real", {0: 0.4}, problem=view.problem, metric=view.y)
        made = pd.concat([made, level]).rename(columns={"nfe": view.x} if view.x != "method" else {})
        told = views.draw(view, views.table(view, {"a/one": made}, cards), tmp_path)
        assert told["papers"] == ["a/one"] and (tmp_path / f"{view.name}.csv").exists()
        assert "<svg" in (tmp_path / f"{view.name}.svg").read_text()
    assert len({v.name for v in views.VIEWS}) == len(views.VIEWS)


def test_papers_that_measured_the_same_agree_or_contradict(make):
    cards = {p: make.card(p[2:], cells=["nfe"]) for p in ("a/one", "a/two", "a/three")}
    tables = {
        "a/one": pd.concat([rows("x", {10: 1.0, 20: 1.0}), rows("y", {10: 2.0, 20: 2.0})]),
        "a/two": pd.concat([rows("x", {10: 1.0, 20: 3.0, 40: 1.0}), rows("y", {10: 2.0, 20: 2.0})]),
        "a/three": pd.concat([rows("x", {10: 1.0}), rows("y", {10: 1.001}), rows("z", {10: 1.0})]),
    }
    found = {c["papers"]: c for c in ground.comparisons(tables, cards)}
    assert found["a/one", "a/two"] == {
        "problem": "p", "metric": "loss", "methods": ("x", "y"), "papers": ("a/one", "a/two"),
        "agree": 1, "contradict": 1, "open": 0,
    }  # fmt: skip
    assert found["a/one", "a/three"]["open"] == 1 and found["a/one", "a/three"]["agree"] == 0
    assert ground.comparisons({p: t.assign(shared=True) for p, t in tables.items()}, cards) == []


def test_the_data_follow_the_schema(site):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    papers = [_published(r, site.cards[f"{r['chapter']}/{r['slug']}"]) for r in site.records]
    atlas = {"scale": "laptop", "papers": papers, "engine": {"wall_s": 1.0, "compute_cpu_s": 1.0, "cores": 2}}
    jsonschema.validate(atlas, schema)
    papers[0]["claims"][0]["verdict"] = "mostly replicated"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(atlas, schema)


EVIDENCE = """from papertrial.engine.evidence import figure

@figure("Seeds", caption="c", alt="a")
def seeds(results, ax):
    ax.plot(results.of("p")["seed"], results.timings["seed"][:5])

@figure("Broken", caption="c", alt="a", panels=2)
def broken(results, axes):
    raise LookupError("no " + axes[1].get_title() + "such method")
"""


def test_figures_name_their_data_and_are_drawn_alike(tmp_path, monkeypatch, make):
    made = make.card("one")
    module = ModuleType(f"{made.module}.evidence")
    exec(EVIDENCE, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    evidence = Evidence(rows("x", {1: 1.0}), timings=rows("x", {1: 1.0}))
    told = draw(made, evidence, tmp_path)
    first = (tmp_path / "seeds.svg").read_bytes()
    draw(made, evidence, tmp_path)
    assert (tmp_path / "seeds.svg").read_bytes() == first
    assert b"<text" not in first  # outlines: a reader may lack the font
    assert told[0]["data"] == ["results.csv", "timings.csv"]
    assert told[1]["file"] is None and told[1]["reason"] == "LookupError: no such method"


def test_a_record_is_shown_though_a_shared_baseline_lies_here(site, monkeypatch):
    card, found = site.cards["alignment/paper-001"], site.records[1]
    unit = {"path": "data/runs/laptop/alignment/paper-001/all@000000000000", "fingerprint": "0" * 12}
    plan = {"scale": "laptop", "units": {"all": unit}, "modules": {}, "cells": []}
    shared = Evidence(rows("adamw", {1: 1.0}, shared=True))
    monkeypatch.setattr(judge, "gather", lambda plan: (shared, [f"{unit['path']}: hasn't run"]))
    monkeypatch.setattr(recorded, "read", lambda paper: (found, rows("momentum", {1: 1.0})))
    told = _judged(card, plan, "alignment/paper-001")
    assert told["source"] == "recorded" and told["claims"] == found["claims"] and not told["stale"]
    assert set(told["evidence"].rows["method"]) == {"momentum"}


def stamps(checkout) -> dict[str, int]:
    return {f.name: f.stat().st_mtime_ns for f in (checkout.path / "reports/smoke").rglob("*.html")}


def test_only_what_moved_is_drawn_again(checkout):
    """From results alone, too: the methods' code may be gone."""
    checkout.papertrial("atlas", "smoke")
    for plan in (checkout.path / "data/scratch/plan/smoke/toys").glob("*.json"):
        for unit in json.loads(plan.read_text())["units"].values():
            checkout.papertrial("unit", unit["path"])
    checkout.papertrial("atlas", "smoke")
    atlas = json.loads((checkout.path / "reports/smoke/atlas.json").read_text())
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(atlas, json.loads((checkout.path / "reports/smoke/atlas.schema.json").read_text()))
    assert [(p["slug"], p["source"], p["claims"][0]["verdict"]) for p in atlas["papers"]] == [
        ("first", "run", "replicated"), ("second", "run", "replicated"),
    ]  # fmt: skip
    page = (checkout.path / "reports/smoke/toys/first.html").read_text()
    assert 'src="first/iterations.svg"' in page and "results.csv" in page
    before = stamps(checkout)
    checkout.papertrial("atlas", "smoke")
    after = stamps(checkout)
    assert {n for n in after if after[n] != before[n]} == {"index.html"}
    checkout.edit(checkout.paper("first") / "evidence.py", "Every dot", "Each dot")
    checkout.papertrial("atlas", "smoke")
    again = stamps(checkout)
    assert {n for n in again if again[n] != after[n]} == {"index.html", "first.html", "across.html"}
    assert "Each dot" in (checkout.path / "reports/smoke/toys/first.html").read_text()
