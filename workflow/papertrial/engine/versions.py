"""Artifacts under DVC: one command snapshots, one restores, one prunes. Never called inside a rule.

One tracked object per data set, base-model part and unit (``<unit>@<fp>.dvc``), so that pulls are partial and
a pull never deletes a unit that was made here.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from papertrial.engine import artifacts, paths, record
from papertrial.engine.cards import SCALES
from papertrial.engine.errors import PapertrialError
from papertrial.engine.plans import Plan, Planner, needed_paths

KINDS = ("data/datasets", "data/models", "data/runs")
PULLED = paths.SCRATCH / "pulled.json"


def snapshot(planner: Planner) -> None:
    """Track every finished artifact that isn't yet, in one call, and push what lies here to the remote.

    What another machine tracked and this one never pulled is left as it is.
    """
    here = [p for p in on_disk() if not _outdated(p)]
    new = [p for p in here if not Path(f"{p}.dvc").exists()]
    with _repository() as repo:
        if new:
            repo.add(new)
        repo.drop_data_index()  # one that a killed push left half collected would pass for the whole
        pushed = repo.push(targets=[f"{p}.dvc" for p in here]) if here else 0
    print(f"{len(here)} artifacts here, {len(new)} newly tracked, {pushed} files pushed; commit data/**/*.dvc")


def on_disk() -> list[str]:
    """Every finished artifact."""
    return sorted(str(p.parent) for kind in KINDS for p in Path(kind).glob(f"**/{artifacts.PROVENANCE}"))


def _outdated(path: str) -> bool:
    """A folder in another's place: a temporary one that a killed job left."""
    return Path(path).name.startswith(".")


def tracked() -> list[str]:
    """Every artifact that a .dvc file names, here or not."""
    return sorted(str(p.with_suffix("")) for kind in KINDS for p in Path(kind).glob("**/*@*.dvc"))


def planned(planner: Planner, papers: Iterable[str]) -> dict[str, Plan]:
    """{artifact: the plan it belongs to} for some papers at every scale, with all that they need."""
    found: dict[str, Plan] = {}

    def add(needs: Plan, plan: Plan) -> None:
        found.update(dict.fromkeys(needed_paths(needs), plan))
        for name in needs["models"]:
            add(planner.model(plan["scale"], name)["needs"], plan)

    for scale in SCALES:
        for paper in papers:
            plan = planner.paper(scale, paper)
            found.update({u["path"]: plan for u in plan["units"].values()})
            add(plan["needs"], plan)
            add(plan["shared"], plan)
    return found


def prune(planner: Planner) -> None:
    """Remove artifacts, and their .dvc files, whose fingerprint no plan of this checkout names."""
    current = planned(planner, planner.project.papers)
    old = sorted((set(tracked()) | set(on_disk())) - set(current))
    for path in old:
        shutil.rmtree(path, ignore_errors=True)
        Path(f"{path}.dvc").unlink(missing_ok=True)
        print(path)
    print(f"{len(old)} artifacts of other fingerprints removed; older commits still name them in their .dvc files")


def restore(planner: Planner) -> None:
    """Pull the selected papers' artifacts, check every byte, and say what the pulled results don't cover.

    Raises:
        PapertrialError: the remote can't be read, or something tracked did not arrive whole.
    """
    papers = planner.project.selected
    wanted = planned(planner, papers)
    names = [p for p in tracked() if p in wanted and not Path(p).is_dir()]
    with _repository() as repo:
        _pull(repo, names)
        damaged = [p for p in names if _verdict(p)]
        if damaged:  # a damaged cache hands out what it has; drop it there and fetch again
            for path in damaged:
                shutil.rmtree(path, ignore_errors=True)
                _drop_damaged(repo, path)
            _pull(repo, damaged)
    lost = {p: why for p in names if (why := _verdict(p))}
    for path in lost:
        shutil.rmtree(path, ignore_errors=True)
    arrived = [p for p in names if p not in lost]
    _remember(arrived)
    print(f"{len(arrived)} artifacts restored and checked")
    for line in uncovered(planner, papers):
        print(line)
    if lost:
        raise PapertrialError("did not arrive whole:\n" + "\n".join(f"  {p}: {why}" for p, why in lost.items()))


def uncovered(planner: Planner, papers: Iterable[str]) -> Iterator[str]:
    """What has to run at laptop scale though results are tracked or recorded, and since which change."""
    known = set(tracked()) | set(on_disk())
    for paper in papers:
        plan = planner.paper("laptop", paper)
        missing = [name for name, u in plan["units"].items() if u["path"] not in known]
        if missing:
            recorded = record.read(paper)
            why = f"; since the record changed: {', '.join(record.moved(recorded[0], plan))}" if recorded else ""
            yield f"{paper}: not covered: {', '.join(missing)}{why}"


def pulled() -> set[str]:
    """The artifacts that came by a pull rather than a run here."""
    try:
        return set(json.loads(PULLED.read_text()))
    except (OSError, ValueError):
        return set()


def _remember(names: list[str]) -> None:
    PULLED.parent.mkdir(parents=True, exist_ok=True)
    PULLED.write_text(json.dumps(sorted(pulled() | set(names)), indent=1) + "\n")


def _verdict(path: str) -> str:
    """What is wrong with an artifact; empty if nothing is."""
    try:
        artifacts.verify(path)
    except artifacts.Damaged as error:
        return str(error)
    return ""


@contextmanager
def _repository() -> Iterator[Any]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            yield repo
    except DvcException as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise PapertrialError(f"dvc: {error}{cause}") from None


def _pull(repo: Any, names: list[str]) -> None:
    """Fetch and check out; what can't be fetched is found by the caller, file by file."""
    from dvc.exceptions import CheckoutError, DownloadError, FileTransferError

    if names:
        try:
            repo.pull(targets=[f"{p}.dvc" for p in names], force=True)
        except (CheckoutError, DownloadError, FileTransferError) as error:
            print(f"dvc: {error}")


def _drop_damaged(repo: Any, path: str) -> None:
    """Remove the cached objects of an artifact that are not what their name says."""
    from dvc_data.hashfile.tree import Tree
    from dvc_objects.errors import ObjectFormatError

    (stage,) = repo.stage.load_file(f"{path}.dvc")
    cache = repo.cache.local
    for out in stage.outs:
        tree = out.get_obj()
        oids = [info.value for _, _, info in tree] if isinstance(tree, Tree) else []
        for oid in [*oids, out.hash_info.value]:
            try:
                cache.check(oid, check_hash=True)
            except (ObjectFormatError, FileNotFoundError):
                cache.fs.remove(cache.oid_to_path(oid)) if cache.exists(oid) else None
