"""The price beforehand: exactly the jobs that are due, each figure with what it rests on, none made up."""

import json

import pytest

from papertrial.engine.bill import bill, check
from papertrial.engine.errors import PapertrialError
from papertrial.engine.networks import Count
from papertrial.engine.plans import Planner
from papertrial.engine.price import Pricer, size
from papertrial.engine.project import Project
from papertrial.engine.units import cut

CARD = """
title: A toy
data: simulated
claims: [{id: c1, claim: a, paper: b, measure: c, replicated_if: d}]
problems:
  line: {work: [n, n, steps]}
  curve: {}
methods: {ours: {role: proposed}, theirs: {role: baseline}}
tune: [{grids: {ours: {a: [1, 2]}}, problems: [line], seeds: [1000], metric: x, trials: 2}]
scales:
  smoke: {seeds: 1, settings: {n: 10, steps: [1, 2]}, problems: {curve: {settings: {n: 30, steps: 9}}}, units: paper}
  laptop: {seeds: 2, settings: {n: 30, steps: [4, 8]}, problems: {curve: {settings: {n: 30, steps: 9}}}, units: method}
  paper: {seeds: 5, settings: {n: 90, steps: [8]}, units: run, mem_mb: 5000}
scale_gap: none
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """One paper of two problems and two methods, in a folder of its own; what it took, put there by ``ran``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config/papers/toys").mkdir(parents=True)
    (tmp_path / "config/models").mkdir()
    (tmp_path / "config/config.yaml").write_text("scale: smoke\n")
    (tmp_path / "config/papers/toys/toy.yaml").write_text(CARD)
    planner = Planner(Project())
    monkeypatch.setattr("papertrial.engine.plans._code", lambda module, asked_by: {})
    monkeypatch.setattr("papertrial.engine.plans._has_evidence", lambda card: False)
    monkeypatch.setattr("papertrial.engine.plans._templates", lambda: "")

    def ran(scale: str, seconds: float, device: str = "cpu", **cost: float) -> None:
        """Every run took so long, and every unit half a second more."""
        for unit, runs in cut(planner.project.card("toys/toy"), scale).items():
            folder = tmp_path / f"data/runs/{scale}/toys/toy/{unit}@{'0' * 12}"
            folder.mkdir(parents=True)
            spent = {"cpu_s": seconds, "wall_s": 2 * seconds}
            told = {
                "start": "2026-01-01",
                "device": device,
                "runs": [{"problem": r["problem"]["name"], "method": r["method"], **spent} for r in runs],
                "cost": {"cpu_s": seconds * len(runs) + 0.5, "wall_s": 1, "peak_mb": 100.0, **cost},
            }
            (folder / "provenance.json").write_text(json.dumps(told))

    return planner, ran


def test_nothing_known_is_unknown(project):
    planner, _ = project
    found = Pricer(planner, "laptop").unit("toys/toy", "ours")
    assert found.seconds is None and found.basis == "unknown" and found.peak_mb is None
    assert "2 unknown" in bill(planner, "laptop", "cpu", 10)


def test_what_ran_at_the_scale_costs_what_it_took(project):
    planner, ran = project
    ran("laptop", 3.0, energy_j=65.0)
    found = Pricer(planner, "laptop").unit("toys/toy", "ours")
    assert found.basis == "recorded" and found.seconds == pytest.approx(6.5)
    assert found.peak_mb == 100
    assert found.joules == pytest.approx(65)


def test_another_scale_is_scaled_by_evaluations_and_work(project):
    """line: three evaluations against four and (30/10)^2 (12/3) of work; curve: the same sizes, twice the seeds."""
    planner, ran = project
    ran("smoke", 1.0)
    pricer = Pricer(planner, "laptop")
    line, curve = 4 / 3 * 36, 2.0
    assert pricer.unit("toys/toy", "ours").seconds == pytest.approx(line + curve + 0.5)
    assert pricer.unit("toys/toy", "ours").basis == "scaled"
    assert pricer.unit("toys/toy", "theirs").seconds == pytest.approx(2 * 36 + curve + 0.5)


def test_sizes_that_no_work_explains_stay_unknown(project):
    planner, ran = project
    ran("smoke", 1.0)
    ran("laptop", 3.0)
    pricer = Pricer(planner, "paper")
    assert pricer.unit("toys/toy", "curve.ours.0").seconds is None
    tuning, one = (pricer.unit("toys/toy", f"line.ours.{name}").seconds for name in ("tune", "0"))
    evaluation = 3.0 / 4 * (90 / 30) ** 2 * 8 / 12  # from laptop, the nearest
    assert (tuning, one) == (pytest.approx(2 * evaluation + 0.5), pytest.approx(evaluation + 0.5))


def test_only_what_is_due_is_priced(project):
    planner, ran = project
    ran("laptop", 3.0)
    units, models, datasets = Pricer(planner, "laptop").jobs(["toys/toy"])
    assert units == {"toys/toy": ["ours", "theirs"]} and not models and not datasets
    for unit in planner.paper("laptop", "toys/toy")["units"].values():
        from pathlib import Path

        Path(unit["path"]).mkdir(parents=True)
    assert bill(planner, "laptop", "cpu", 10) == "laptop scale: nothing to run"


def test_without_artifacts_the_record_in_git_gives_the_total(project, tmp_path):
    planner, _ = project
    (tmp_path / "data/recorded/toys").mkdir(parents=True)
    cost = {"cpu_s": 90.0, "wall_s": 100.0, "peak_mb": 7.0}
    (tmp_path / "data/recorded/toys/toy.json").write_text(json.dumps({"cost": cost}))
    pricer = Pricer(planner, "laptop")
    both = [pricer.unit("toys/toy", unit) for unit in ("ours", "theirs")]
    assert sum(e.seconds for e in both) == pytest.approx(90)
    assert {e.basis for e in both} == {"recorded"} and both[0].disk is None


def test_a_gpu_is_not_priced_from_a_core(project):
    planner, ran = project
    card = planner.project.card("toys/toy")
    object.__setattr__(card.scales["laptop"], "gpu", 1)
    ran("laptop", 3.0)
    assert Pricer(planner, "laptop", "cuda").unit("toys/toy", "ours").seconds is None
    assert Pricer(planner, "laptop", "cpu").unit("toys/toy", "ours").seconds == pytest.approx(6.5)


def test_the_table_and_its_own_error(project):
    planner, ran = project
    ran("smoke", 1.0)
    with pytest.raises(PapertrialError, match="no paper has been measured both at smoke and at laptop scale"):
        check(planner, "laptop", "smoke")
    ran("laptop", 3.0)
    said = check(planner, "laptop", "smoke")
    predicted = 4 / 3 * 36 + 2 + 0.5 + 2 * 36 + 2 + 0.5
    assert f"{predicted:.1f}" in said and "13.0" in said and f"x{predicted / 13:.2g}" in said
    assert "within a factor of 1.5: 0 of 1" in said
    table = bill(planner, "paper", "cpu", 10).splitlines()
    assert table[0].split()[:3] == ["jobs", "CPU", "h"]
    assert f"x{predicted / 13:.2g}" in table[1] and "scaled, 10 unknown" in table[1] and "not measured" in table[1]
    assert table[2].startswith("total") and ">= " in table[2] and "<= 5000" in table[2]


def test_a_size_is_a_number_or_untold():
    settings = {"n": 3, "grid": [1, 2.5], "cases": ["a", "b"], "steps": {"ours": 7}, "on": True}
    assert size(settings, "n") == 3 and size(settings, "grid") == 3.5 and size(settings, "len(cases)") == 2
    assert size(settings, "steps", "ours") == 7
    for name in ("cases", "none", "len(none)", "on"):
        assert size(settings, name) is None
    assert size(settings, "steps", "theirs") is None


def test_a_network_is_priced_by_its_operations(project, tmp_path, monkeypatch):
    planner, _ = project
    widths = {"smoke": 4, "laptop": 8, "paper": 800}
    scales = {s: {"parts": ["0"], "settings": {"width": w}, "gpu": int(s == "paper")} for s, w in widths.items()}
    (tmp_path / "config/models/net.yaml").write_text(json.dumps({"about": "a net", "scales": scales}))

    def count_once(module: str, settings: dict) -> Count:
        operations = 20 * settings["width"]
        return Count(10 * settings["width"], operations, 300.0 * operations)

    monkeypatch.setattr("papertrial.engine.networks.count_once", count_once)
    artifact = tmp_path / f"data/models/laptop/net/0@{'0' * 12}"
    artifact.mkdir(parents=True)
    told = {"start": "2026", "device": "cpu", "cost": {"cpu_s": 5.0, "wall_s": 5.0, "peak_mb": 1.0}}
    (artifact / "provenance.json").write_text(json.dumps(told))
    on_core = Pricer(planner, "paper", "cpu").model("net", "0")
    assert (on_core.seconds, on_core.basis, on_core.disk) == (pytest.approx(500), "counted", 4 * 8000)
    on_gpu = Pricer(planner, "paper", "cuda", gpu_rate=1e6).model("net", "0")
    assert on_gpu.gpu and on_gpu.seconds == pytest.approx(2 * 800 * 10 * 300 / 1e6)
    assert Pricer(planner, "laptop", "cpu").model("net", "0").basis == "recorded"


def test_forward_passes_of_a_needed_network_are_priced_on_a_gpu(project, tmp_path, monkeypatch):
    planner, _ = project
    scales = {s: {"parts": ["0"], "settings": {}} for s in ("smoke", "laptop", "paper")}
    (tmp_path / "config/models/net.yaml").write_text(json.dumps({"about": "a net", "scales": scales}))
    monkeypatch.setattr("papertrial.engine.networks.count_once", lambda module, settings: Count(1, 1000, 1.0))
    card = planner.project.card("toys/toy")
    object.__setattr__(card.needs, "models", ["net/0"])
    object.__setattr__(card.scales["laptop"], "gpu", 1)
    for problem in card.problems.values():
        object.__setattr__(problem, "work", ["n", "steps", "net"])
    found = Pricer(planner, "laptop", "cuda", gpu_rate=1e6).unit("toys/toy", "ours")
    assert found.basis == "counted"
    assert found.seconds == pytest.approx(1000 * (4 * 30 * 12 + 2 * 30 * 9) / 1e6)
