"""The checkout as a whole: its config, its papers and its base models."""

from collections import defaultdict
from functools import cached_property
from pathlib import Path

from papertrial.engine import paths
from papertrial.engine.cards import Card, load_card
from papertrial.engine.config import Config, load_config, select
from papertrial.engine.errors import PapertrialError, nearest
from papertrial.engine.models import BaseModelCard, load_model_card


class Project:
    """Cards and settings of the folder that a command runs in; files are read when first asked for."""

    def __init__(self, config: Config | None = None) -> None:
        if not paths.PAPERS.is_dir():
            raise PapertrialError(f"{Path.cwd()} is no Papertrial checkout: run this in the folder with the Snakefile")
        self.config = config or load_config()
        self._cards: dict[str, Card] = {}
        self._models: dict[str, BaseModelCard] = {}

    @cached_property
    def papers(self) -> list[str]:
        """Every paper of the project, as chapter/slug."""
        found = sorted(f"{p.parent.name}/{p.stem}" for p in paths.PAPERS.glob("*/*.yaml"))
        chapters = defaultdict(list)
        for paper in found:
            chapters[paper.split("/")[1]].append(paper)
        for slug, twice in chapters.items():
            if len(twice) > 1:
                raise PapertrialError(f"two papers have the slug '{slug}': {' and '.join(twice)}; rename one of them")
        return found

    @cached_property
    def selected(self) -> list[str]:
        """The papers that config and command line ask for."""
        return select(self.config.papers, self.papers)

    def card(self, paper: str) -> Card:
        if paper not in self.papers:
            raise PapertrialError(f"no paper is called '{paper}'; {nearest(paper, self.papers)}")
        if paper not in self._cards:
            self._cards[paper] = load_card(paths.PAPERS / f"{paper}.yaml")
        return self._cards[paper]

    def model(self, name: str) -> BaseModelCard:
        if name not in self._models:
            path = paths.MODELS / f"{name}.yaml"
            if not path.exists():
                known = sorted(p.stem for p in paths.MODELS.glob("*.yaml"))
                raise PapertrialError(f"no base model is called '{name}' ({path}); {nearest(name, known)}")
            self._models[name] = load_model_card(path)
        return self._models[name]
