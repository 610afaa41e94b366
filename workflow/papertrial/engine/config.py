"""What a user edits: config/config.yaml, and the same keys on the command line (--config scale=laptop)."""

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from papertrial.engine.cards import Scale, Strict, load_yaml, parse
from papertrial.engine.errors import PapertrialError, nearest

CONFIG = Path("config/config.yaml")


class Config(Strict):
    """Settings of a run."""

    scale: Scale = Field(
        "smoke",
        description="smoke (seconds: does it work?), laptop (minutes: verdicts) or paper (the authors' size)",
    )
    papers: list[str] = Field(
        ["*"], min_length=1, description="which papers run: slugs, <chapter>/<slug> or patterns such as convex/*"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "cpu", description="where torch methods run; auto takes what there is, the rest is an error where it's missing"
    )
    extra_seeds: int = Field(
        0, ge=0, description="further seeds for every problem, to settle an inconclusive verdict; never recorded"
    )

    @field_validator("papers", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return value.replace(",", " ").split() if isinstance(value, str) else value


def load_config(path: Path = CONFIG, overrides: dict[str, Any] | None = None) -> Config:
    """The file's settings with the command line's on top."""
    data = load_yaml(path) or {}
    return parse(Config, {**data, **(overrides or {})}, path)


def select(patterns: Iterable[str], papers: Iterable[str]) -> list[str]:
    """The papers, given as chapter/slug, that a list of slugs, chapter/slug or patterns asks for.

    Raises:
        PapertrialError: a pattern that matches nothing.
    """
    papers = sorted(papers)
    chosen: set[str] = set()
    for pattern in patterns:
        found = [p for p in papers if fnmatch(p, pattern) or fnmatch(p.split("/")[1], pattern)]
        if not found:
            known = papers if "/" in pattern else [p.split("/")[1] for p in papers]
            raise PapertrialError(f"no paper is called '{pattern}'; {nearest(pattern, known)}")
        chosen.update(found)
    return sorted(chosen)
