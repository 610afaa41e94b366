"""What the Snakemake rules ask: inputs that are missing, and a job's resources."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from papertrial.engine import paths
from papertrial.engine.cards import parse
from papertrial.engine.config import CONFIG, Config
from papertrial.engine.errors import PapertrialError
from papertrial.engine.plans import Plan, Planner, absent, needed_paths
from papertrial.engine.project import Project

# What a failed job says where more memory or time may help: numpy's and torch's words, and ours after a SIGTERM.
SHORT = ("MemoryError", "can't allocate memory", "told to stop")


def surround(package_root: Path | str, submitting: bool) -> None:
    """Give every job this checkout's code and this interpreter, wherever the package is installed.

    So ``.venv/bin/snakemake`` works without activation. The start is kept for the engine's own account.
    """
    os.environ["PYTHONPATH"] = str(package_root)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}" + os.environ.get("PATH", "")
    # Freed memory stays with the process: page faults cost a network's forward pass a fifth of its time.
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**30))
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**25))
    if submitting:
        os.environ["PAPERTRIAL_STARTED"] = str(time.time())
    elif "SLURM_JOB_ID" in os.environ and not {"CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"} & os.environ.keys():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # asked for no GPU, so it takes none, though a node may show all of its


class Dag:
    """Answers for one invocation of Snakemake.

    Args:
        config: Snakemake's config: the file's with the command line's on top.
        submitting: whether this is the process that the user started; a job's own Snakemake reads the plans
            that it wrote instead of making them.
        known: gives Snakemake's cache of what exists, once there is one. Snakemake lists a folder once, and would miss
            a plan written afterwards.
    """

    def __init__(self, config: Mapping[str, Any], submitting: bool, known: Callable[[], MutableMapping]) -> None:
        self.config = parse(Config, dict(config), CONFIG)
        self.submitting = submitting
        self._known = known
        self.project = Project(self.config)
        self.asked: dict[str, list[str]] = {}  # scale -> papers whose pages this invocation wants
        self._planner = Planner(self.project, write=submitting)

    @property
    def target(self) -> str:
        """The atlas at the scale asked for, once every card asked for is known to be valid."""
        if self.submitting:
            for paper in self.project.selected:
                self.project.card(paper)
        return f"reports/{self.config.scale}/index.html"

    def atlas_inputs(self, wildcards: Any) -> list[str]:
        """The plans of all papers selected, and their units that aren't there yet."""
        return [i for paper in self.project.selected for i in self._page(wildcards.scale, paper)]

    def page_inputs(self, wildcards: Any) -> list[str]:
        return self._page(wildcards.scale, f"{wildcards.chapter}/{wildcards.slug}")

    def unit_inputs(self, wildcards: Any) -> list[str]:
        plan = self._plan(wildcards)
        unit = plan["units"].get(wildcards.part, {"after": {}})
        return absent([*needed_paths(plan["needs"]), *unit["after"].values()])

    def model_inputs(self, wildcards: Any) -> list[str]:
        return absent(needed_paths(self._planner.model(wildcards.scale, wildcards.name)["needs"]))

    def resource(self, name: str) -> Callable[..., int]:
        """A resource of a unit or a base model as its yaml states it; memory and time double with every retry."""

        def of(wildcards: Any, attempt: int) -> int:
            if hasattr(wildcards, "slug"):
                plan = self._plan(wildcards)
            else:
                plan = self._planner.model(wildcards.scale, wildcards.name)
            if attempt > 1 and not self.submitting:
                self._refuse_in_vain(wildcards)
            value = plan["resources"][name]
            return value if name == "gpu" else value * 2 ** (attempt - 1)

        return of

    def _refuse_in_vain(self, wildcards: Any) -> None:
        """A retry is for what was killed for its memory or time: an error of the job's own would only come again."""
        w = wildcards
        if hasattr(w, "slug"):
            artifact = paths.unit(w.scale, f"{w.chapter}/{w.slug}", w.part, w.fingerprint)
        else:
            artifact = paths.model(w.scale, w.name, w.part, w.fingerprint)
        file = paths.failure(artifact)
        if not file.exists() or file.stat().st_mtime < float(os.environ.get("PAPERTRIAL_STARTED", 0)):
            return  # killed, or told by an earlier run
        message = json.loads(file.read_text())["message"]
        if not any(words in message for words in SHORT):
            raise PapertrialError(f"not tried again, since it failed by an error of its own: {message}")

    def _plan(self, wildcards: Any) -> Plan:
        return self._planner.paper(wildcards.scale, f"{wildcards.chapter}/{wildcards.slug}")

    def _page(self, scale: str, paper: str) -> list[str]:
        plan = self._planner.paper(scale, paper)
        if paper not in self.asked.setdefault(scale, []):
            self.asked[scale].append(paper)
        units = [u["path"] for u in plan["units"].values()]
        file = str(paths.paper_plan(scale, paper))
        self._known()[file] = True
        return [file, *absent([*units, *needed_paths(plan["shared"])])]
