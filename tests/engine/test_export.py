"""What a paper hands on: an RO-Crate that its own library reads back, and BibTeX."""

import json
from pathlib import Path
from urllib.parse import unquote

import yaml

from papertrial.engine.cards import load_card
from papertrial.engine.export import bibtex

ROOT = Path(__file__).parents[2]


def test_a_crate_holds_card_code_artifacts_and_verdicts(checkout):
    checkout.snakemake("reports/laptop/toys/first.html")
    checkout.papertrial("record", "first")
    checkout.papertrial("crate", "out", "first")
    from rocrate.rocrate import ROCrate

    made = ROCrate(checkout.path / "out")
    names = {e.id for e in made.get_entities()}
    assert "config/papers/toys/first.yaml" in names and "data/recorded/toys/first.json" in names
    assert "workflow/papertrial/papers/toys/first/method.py" in names
    (trial,) = made.get_by_type("CreateAction")
    assert len(trial["result"]) == len(checkout.units("laptop")) == 3
    described = json.loads((checkout.path / "out/ro-crate-metadata.json").read_text())
    entities = {e["@id"]: e for e in described["@graph"]}
    assert described["@context"].startswith("https://w3id.org/ro/crate/1.")
    assert entities["ro-crate-metadata.json"]["conformsTo"]["@id"].startswith("https://w3id.org/ro/crate/1.")
    assert {"@type", "name", "description", "datePublished", "license", "hasPart"} <= entities["./"].keys()
    assert entities["#papertrial"]["softwareVersion"] == checkout.run("git", "rev-parse", "HEAD").stdout.strip()
    listed = {unquote(part["@id"]).rstrip("/") for part in entities["./"]["hasPart"]}
    there = {str(f.relative_to(checkout.path / "out")) for f in (checkout.path / "out").rglob("*") if f.is_file()}
    assert all({f, *map(str, Path(f).parents)} & listed for f in there - {"ro-crate-metadata.json"})
    assert "@misc{first," in (checkout.path / "out/references.bib").read_text()
    for entity in made.get_by_type("File"):
        assert (checkout.path / "out" / entity.id).exists()
    verdict = json.loads((checkout.path / "out/data/recorded/toys/first.json").read_text())
    assert verdict["claims"][0]["verdict"] == "replicated"
    refused = checkout.papertrial("crate", "out", "first", check=False)
    assert refused.returncode == 1 and "exists already" in refused.stderr


def test_nothing_to_export_is_told(checkout):
    refused = checkout.papertrial("crate", "out", "first", check=False)
    assert refused.returncode == 1 and "nothing has run at laptop scale" in refused.stderr


def test_bibtex():
    card = load_card(ROOT / "config/papers/convex/sinkhorn-newton-sparse.yaml")
    entry = bibtex(card)
    assert entry.startswith("@misc{sinkhorn-newton-sparse,") and "eprint = {2401.12253}" in entry


def test_citation():
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license", "version"} <= told.keys()
