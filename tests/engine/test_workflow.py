"""The DAG: what is planned after a run, a failure, a mend, a step back, a loss."""

import json
import shutil

import pytest
import yaml
from tests.conftest import ROOT


def test_runs_whole_and_then_plans_nothing(checkout):
    checkout.snakemake()
    assert [u.parent.name for u in checkout.units()] == ["first", "second"]
    atlas = json.loads((checkout.path / "reports/smoke/atlas.json").read_text())
    assert [p["claims"][0]["verdict"] for p in atlas["papers"]] == ["replicated", "replicated"]
    assert [p["claims"][0]["control"]["verdict"] for p in atlas["papers"]] == ["not replicated"] * 2
    assert checkout.planned() == []


def test_one_page_by_its_path_at_a_scale(checkout):
    checkout.snakemake("reports/laptop/toys/first.html")
    assert {u.name.split("@")[0] for u in checkout.units("laptop")} == {"momentum", "descent", "no-momentum"}
    assert not checkout.units("smoke")
    assert not (checkout.path / "reports/laptop/index.html").exists()


def test_several_pages_at_once(checkout):
    """The second plan is written into a folder that Snakemake has listed by then."""
    pages = [f"reports/laptop/toys/{slug}.html" for slug in ("first", "second")]
    checkout.snakemake(*pages)
    assert all((checkout.path / page).exists() for page in pages)


def test_editing_code_reruns_its_dependents_and_only_them(checkout):
    shared = checkout.path / "workflow/papertrial/methods/shared.py"
    shared.write_text("FACTOR = 1\n")
    method = checkout.paper("first") / "method.py"
    checkout.edit(method, "import numpy as np\n", "import numpy as np\n\nfrom papertrial.methods import shared\n")
    checkout.snakemake()
    assert checkout.planned() == []
    shared.write_text('"""A docstring, which changes nothing."""\n\nFACTOR = 1  # nor does a comment\n')
    assert checkout.planned() == []
    shared.write_text("FACTOR = 2\n")
    assert checkout.planned() == ["atlas", "unit of toys/first"]


def test_editing_evidence_reruns_no_method(checkout):
    checkout.snakemake()
    checkout.edit(checkout.paper("first") / "evidence.py", '">", 3', '">", 1000')
    assert checkout.planned() == ["atlas"]
    checkout.snakemake()
    page = json.loads((checkout.path / "reports/smoke/toys/first.json").read_text())
    assert page["claims"][0]["verdict"] == "not replicated"


def test_fail_mend_step_back_and_losses(checkout):
    """A walk: fail, fail again, mend, go back, lose .snakemake, lose a unit."""
    method = checkout.paper("first") / "method.py"
    good = method.read_text()
    method.write_text(good.replace("starts = np.stack", "raise ValueError('broken on purpose')\n    starts = np.stack"))
    for _ in range(2):
        failed = checkout.snakemake(check=False)
        assert failed.returncode == 1
        assert "broken on purpose" in failed.stdout + failed.stderr
        atlas = json.loads((checkout.path / "reports/smoke/atlas.json").read_text())
        verdicts = {p["slug"]: p["claims"][0]["verdict"] for p in atlas["papers"]}
        assert verdicts == {"first": "not measured", "second": "replicated"}
        assert "broken on purpose" in (checkout.path / "reports/smoke/toys/first.html").read_text()
        assert checkout.planned() == ["atlas", "unit of toys/first"]
    method.write_text(good)
    checkout.snakemake()
    assert checkout.planned() == []
    method.write_text(good.replace("1e-6 *", "1e-5 *"))
    assert checkout.planned() == ["atlas", "unit of toys/first"]
    checkout.snakemake()
    method.write_text(good)  # as git checkout would: the older results are still there
    assert checkout.planned() == ["atlas"]
    checkout.snakemake()
    assert checkout.planned() == []
    shutil.rmtree(checkout.path / ".snakemake")
    assert checkout.planned() == []
    lost = next(u for u in checkout.units() if u.parent.name == "second")
    shutil.rmtree(lost)
    assert checkout.planned() == ["atlas", "unit of toys/second"]


def test_a_unit_under_an_old_fingerprint_refuses(checkout):
    checkout.snakemake()
    old = str(checkout.units()[0].relative_to(checkout.path))
    checkout.edit(checkout.paper("first") / "method.py", "1e-6 *", "1e-5 *")
    checkout.snakemake()
    shutil.rmtree(checkout.path / old)
    refused = checkout.papertrial("unit", old, check=False)
    assert refused.returncode == 1
    assert "is not the current one" in refused.stderr
    assert not (checkout.path / old).exists()


def test_code_that_changes_after_the_plan_refuses(checkout):
    checkout.snakemake("-n")
    plan = json.loads((checkout.path / "data/scratch/plan/smoke/toys/first.json").read_text())
    checkout.edit(checkout.paper("first") / "method.py", "1e-6 *", "1e-5 *")
    refused = checkout.papertrial("unit", plan["units"]["all"]["path"], check=False)
    assert "code changed after the plan was made" in refused.stderr


def test_units_split_by_run_tune_first(checkout):
    card = checkout.path / "config/papers/toys/first.yaml"
    tune = """tune:
  - {grids: {momentum: {a: [1, 2]}, descent: {a: [1, 2]}}, seeds: [1000], metric: iterations, trials: 2}
scales:
"""
    checkout.edit(card, "scales:\n", tune)
    checkout.edit(card, "cap: 5000}, units: paper", "cap: 5000}, units: run")
    checkout.snakemake("reports/smoke/toys/first.html")
    names = {u.name.split("@")[0] for u in checkout.units()}
    assert {"quadratic.momentum.tune", "quadratic.momentum.0", "quadratic.no-momentum.2"} <= names
    page = json.loads((checkout.path / "reports/smoke/toys/first.json").read_text())
    assert page["claims"][0]["verdict"] == "replicated"


def test_a_jobs_own_snakemake_reads_the_plan(checkout):
    """On a cluster every job starts Snakemake again: it makes no plan, reads no other card, and judges nothing."""
    checkout.snakemake("-n")
    plan = checkout.path / "data/scratch/plan/smoke/toys/first.json"
    written = plan.read_bytes()
    unit = json.loads(written)["units"]["all"]
    (checkout.path / "workflow/grimp.py").write_text("raise ImportError('a job must not look for imports')\n")
    (checkout.path / "config/papers/toys/second.yaml").write_text("no: card")
    told = ("unit:scale=smoke,chapter=toys,slug=first,part=all,fingerprint=" + unit["fingerprint"],)
    job = ("--mode", "remote", "--allowed-rules", "unit", "--force", "--nolock", "--target-jobs", *told)
    checkout.snakemake(*job)
    assert (checkout.path / unit["path"] / "results.parquet").exists()
    assert plan.read_bytes() == written
    shutil.rmtree(checkout.path / unit["path"])
    checkout.edit(checkout.paper("first") / "method.py", "1e-6 *", "1e-5 *")  # the plan is out of date: the job fails
    assert checkout.snakemake(*job, check=False).returncode == 1
    assert not (checkout.path / "reports").exists()


def test_a_retry_is_for_what_was_killed(checkout):
    """The second try of a job on a cluster: not after an error of its own, but after too little memory or a kill."""
    method = checkout.paper("first") / "method.py"
    good = method.read_text()
    method.write_text(good.replace("starts = np.stack", "raise ValueError('broken on purpose')\n    starts = np.stack"))
    checkout.snakemake("--keep-going", check=False)
    path, failure = _failure(checkout)
    again = ("--mode", "remote", "--allowed-rules", "unit", "--force", "--nolock", "--attempt", "2", path)
    refused = checkout.snakemake(*again, check=False)
    assert refused.returncode == 1
    assert "not tried again, since it failed by an error of its own" in refused.stderr
    for words in ("MemoryError: too much", "told to stop; state saved"):
        failure.write_text(json.dumps({"artifact": path, "message": words}))
        checkout.snakemake(*again, check=False)
        assert "broken on purpose" in failure.read_text()  # it ran, and told its failure anew


def _failure(checkout):
    """The artifact that failed and the file that tells why."""
    (file,) = (checkout.path / "data/scratch/failed").rglob("*.json")
    return json.loads(file.read_text())["artifact"], file


@pytest.mark.parametrize("name", ["slurm", "gpu"])
def test_a_profile_has_all_that_the_default_one_has(name):
    """--workflow-profile replaces the default profile."""
    default, other = (yaml.safe_load((ROOT / f"profiles/{p}/config.yaml").read_text()) for p in ("default", name))
    assert other.items() >= default.items()
