"""Papers as something to hand on: an RO-Crate of card, code, artifacts and verdicts; a bibliography."""

from collections.abc import Iterable
from io import StringIO
from pathlib import Path

from papertrial.engine import fingerprints, paths
from papertrial.engine.cards import Card
from papertrial.engine.cost import git_commit
from papertrial.engine.errors import PapertrialError
from papertrial.engine.plans import Planner

SCALE = "laptop"
LICENCE = "https://spdx.org/licenses/Apache-2.0"


def crate(planner: Planner, target: Path) -> Path:
    """Write the selected papers as one RO-Crate folder.

    Args:
        target: a folder that doesn't exist yet.

    Raises:
        PapertrialError: the folder exists, or a selected paper has neither results nor a record.
    """
    from rocrate.rocrate import ROCrate

    if target.exists():
        raise PapertrialError(f"{target} exists already; name a new folder")
    made = ROCrate()
    made.name = "Papertrial: papers on trial"
    made.description = "Pre-registered claims, implementations, artifacts and computed verdicts"
    made.license = LICENCE
    engine = made.add_jsonld(
        {"@id": "#papertrial", "@type": "SoftwareApplication", "name": "Papertrial", "softwareVersion": git_commit()}
    )
    for paper in planner.project.selected:
        _add_paper(made, planner, paper, engine)
    references = StringIO(bibliography(planner, planner.project.selected))
    made.add_file(references, "references.bib", properties={"name": "References", "encodingFormat": "text/x-bibtex"})
    made.write(target)
    return target


def _add_paper(made: object, planner: Planner, paper: str, engine: object) -> None:
    card, plan = planner.project.card(paper), planner.paper(SCALE, paper)
    results = [u["path"] for u in plan["units"].values() if Path(u["path"]).is_dir()]
    recorded = [f for f in (paths.RECORDED / f"{paper}.json", paths.RECORDED / f"{paper}.csv") if f.exists()]
    if not results and not recorded:
        raise PapertrialError(f"{paper}: nothing has run at {SCALE} scale and nothing is recorded; nothing to export")
    sources = [paths.PAPERS / f"{paper}.yaml"]
    code = {f: str(Path("workflow/papertrial") / f.relative_to(fingerprints.PACKAGE)) for f in _code(card)}
    files = [made.add_file(f, str(f), properties={"name": f"{card.title}: {f.name}"}) for f in [*sources, *recorded]]
    for file, place in code.items():
        if made.get(place) is None:
            files.append(made.add_file(file, place, properties={"name": place}))
    units = [made.add_dataset(path, path, properties={"name": f"{paper}: {Path(path).name}"}) for path in results]
    made.add_jsonld(
        {
            "@id": f"#trial-{card.slug}",
            "@type": "CreateAction",
            "name": f"Trial of {card.title}",
            "instrument": {"@id": engine.id},
            "object": [{"@id": f.id} for f in files],
            "result": [{"@id": u.id} for u in units],
        }
    )


def _code(card: Card) -> list[Path]:
    """The modules that the paper's results depend on, and what judges them."""
    modules = {*fingerprints.closure(f"{card.module}.method"), *fingerprints.closure(f"{card.module}.evidence")}
    return [fingerprints.source_of(m) for m in sorted(modules)]


def bibliography(planner: Planner, papers: Iterable[str]) -> str:
    """BibTeX of the papers."""
    return "\n".join(bibtex(planner.project.card(paper)) for paper in papers)


def bibtex(card: Card) -> str:
    """One entry, with what the card knows."""
    fields = {"title": f"{{{card.title}}}", "year": card.year}
    if card.arxiv:
        fields |= {"eprint": card.arxiv, "archivePrefix": "arXiv", "url": f"https://arxiv.org/abs/{card.arxiv}"}
    rows = ",\n".join(f"  {key} = {{{value}}}" for key, value in fields.items() if value is not None)
    return f"@misc{{{card.slug},\n{rows}\n}}\n"
