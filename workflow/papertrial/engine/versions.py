"""Artifacts under DVC: one command snapshots, one restores, one prunes. Never called inside a rule.

One tracked object per data set, base-model part and unit (``<unit>@<fp>.dvc``), so that pulls are partial and
a pull never deletes a unit that was made here.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from papertrial.engine import artifacts, paths, record
from papertrial.engine.cards import SCALES
from papertrial.engine.errors import PapertrialError
from papertrial.engine.plans import Plan, Planner, needed_paths

KINDS = ("data/datasets", "data/models", "data/runs")
PULLED = paths.SCRATCH / "restored.json"


def snapshot(planner: Planner) -> None:
    """Track every finished artifact that isn't yet, in one call, and push what lies here to the remote.

    What another machine tracked and this one never pulled is left as it is; what is damaged here is left out.
    """
    here = on_disk()
    untracked = {p: _fault(p) for p in here if not Path(f"{p}.dvc").exists()}
    new = [p for p, fault in untracked.items() if not fault]
    damaged = {p: fault for p, fault in untracked.items() if fault}
    with _repository() as repo:
        if new:
            repo.add(new)
        targets = [f"{p}.dvc" for p in _unpushed(repo, [p for p in here if p not in damaged])]
        pushed = repo.push(targets=targets) if targets else 0
    for path, fault in damaged.items():
        print(f"{path}: not tracked, {fault}; delete it and run again")
    print(f"{len(here)} artifacts here, {len(new)} newly tracked, {pushed} files pushed; commit data/**/*.dvc")


def on_disk() -> list[str]:
    """Every finished artifact; the hidden folders that a killed job left are none."""
    found = (p.parent for kind in KINDS for p in Path(kind).glob(f"**/{artifacts.PROVENANCE}"))
    return sorted(str(p) for p in found if not p.name.startswith("."))


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
    """Pull the selected papers' artifacts that aren't here whole, check every byte, and say what isn't covered.

    Raises:
        PapertrialError: the remote can't be read, or something tracked did not arrive whole.
    """
    papers = planner.project.selected
    wanted = planned(planner, papers)
    names = [p for p in tracked() if p in wanted and _fault(p)]
    _remember(names)
    with _repository() as repo:
        _pull(repo, names)
        damaged = [p for p in names if _fault(p)]
        for path in damaged:  # a damaged cache hands out what it has; drop it there and fetch again
            shutil.rmtree(path, ignore_errors=True)
            _drop_damaged(repo, path)
        _pull(repo, damaged)
    lost = {p: fault for p in damaged if (fault := _fault(p))}
    for path in lost:
        shutil.rmtree(path, ignore_errors=True)
    print(f"{len(names) - len(lost)} artifacts restored and checked")
    for line in uncovered(planner, papers):
        print(line)
    if lost:
        raise PapertrialError("did not arrive whole:\n" + "\n".join(f"  {p}: {fault}" for p, fault in lost.items()))


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


def pulled(paths_: Iterable[str]) -> set[str]:
    """Which of these artifacts came by a pull rather than a run here: those made before they were pulled."""
    asked = _asked()
    return {p for p in paths_ if p in asked and _start(p) < asked[p]}


def _asked() -> dict[str, str]:
    """{artifact: when it was last asked of the remote}."""
    try:
        return json.loads(PULLED.read_text())
    except (OSError, ValueError):
        return {}


def _remember(names: list[str]) -> None:
    """Written before anything comes: what a killed restore brought was pulled all the same."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    PULLED.parent.mkdir(parents=True, exist_ok=True)
    temporary = PULLED.with_suffix(".new")
    temporary.write_text(json.dumps(_asked() | dict.fromkeys(names, now), indent=1) + "\n")
    temporary.replace(PULLED)


def _start(path: str) -> str:
    try:
        return artifacts.provenance(path)["start"]
    except artifacts.Damaged:
        return "never"


def _fault(path: str) -> str:
    """What is wrong with an artifact; empty if nothing is."""
    if not Path(path).is_dir():
        return "not here"
    try:
        artifacts.verify(path)
    except artifacts.Damaged as error:
        return str(error).partition("; delete")[0]
    return ""


@contextmanager
def _repository() -> Iterator[Any]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            repo.drop_data_index()  # a killed push or pull leaves one half collected, which passes for the whole
            yield repo
    except DvcException as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise PapertrialError(f"dvc: {error}{cause}") from None


def _pull(repo: Any, names: list[str]) -> None:
    """Fetch and check out as far as it goes; what did not come is found by the caller, file by file."""
    from dvc.exceptions import CheckoutError, DownloadError, FileTransferError

    def told(step: Callable[..., Any], names: list[str], **options: Any) -> None:
        try:
            step(targets=[f"{p}.dvc" for p in names], **options)
        except (CheckoutError, DownloadError, FileTransferError) as error:
            print(f"dvc: {error}")

    if names:
        told(repo.fetch, names)
    inside = [p for p in names if _stays_inside(repo, p)]
    if inside:
        told(repo.checkout, inside, force=True)


def _unpushed(repo: Any, names: list[str]) -> list[str]:
    """The artifacts whose list of files the remote hasn't got, which DVC puts there last."""
    lists = {p: _list_of(p) for p in names}
    known = set(repo.cloud.get_remote_odb().oids_exist([oid for oid in lists.values() if oid]))
    return [p for p, oid in lists.items() if oid not in known]


def _list_of(path: str) -> str | None:
    """The object that lists an artifact's files, as its .dvc file says; None if it says so of another folder."""
    told = yaml.safe_load(Path(f"{path}.dvc").read_text())
    outs = told.get("outs", [])
    here = len(outs) == 1 and outs[0].get("path") == Path(path).name and told.get("wdir", ".") == "."
    return outs[0].get("md5") if here else None


def _files(repo: Any, oid: str) -> dict[tuple[str, ...], str]:
    """{file, as the parts of its path: its object}, as far as the cache has the list."""
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree
    from dvc_objects.errors import ObjectFormatError

    try:
        return {key: info.value for key, _, info in Tree.load(repo.cache.local, HashInfo("md5", oid))}
    except (FileNotFoundError, ObjectFormatError):
        return {}


def _stays_inside(repo: Any, path: str) -> bool:
    """Whether all that an artifact's .dvc file would write is plain files of its own folder."""
    oid = _list_of(path)
    if oid and all(len(key) == 1 and key[0] not in ("", ".", "..") for key in _files(repo, oid)):
        return True
    print(f"{path}.dvc: names files outside {path}; nothing of it was written")
    return False


def _drop_damaged(repo: Any, path: str) -> None:
    """Remove the cached objects of an artifact that are not what their name says."""
    from dvc_objects.errors import ObjectFormatError

    oid, cache = _list_of(path), repo.cache.local
    for found in [*_files(repo, oid).values(), oid] if oid else []:
        try:
            cache.check(found, check_hash=True)
        except (ObjectFormatError, FileNotFoundError):
            cache.fs.remove(cache.oid_to_path(found)) if cache.exists(found) else None
