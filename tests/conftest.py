"""Shared fixtures: a checkout of its own for tests that run the workflow."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COPIED = (
    *("Snakefile", "pyproject.toml", "profiles", "envs"),
    *(".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"),
)
EMPTIED = ("papers", "models", "testbeds", "methods", "data")  # a checkout without papers is quick to plan


class Checkout:
    """A small project in a folder of its own: the engine, and toy papers made by ``papertrial new``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.env = {**os.environ, "PYTHONPATH": str(path / "workflow"), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(self, *command: str, check: bool = True, **options) -> subprocess.CompletedProcess:
        done = subprocess.run(command, cwd=self.path, env=self.env, capture_output=True, text=True, **options)
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def papertrial(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        return self.run(sys.executable, "-m", "papertrial", *arguments, check=check)

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        return self.run(sys.executable, "-m", "snakemake", "--cores", "2", *arguments, check=check)

    def planned(self, *arguments: str) -> list[str]:
        """The jobs that a dry run would start, as 'atlas' or 'unit of toys/first'."""
        said = self.snakemake("-n", *arguments).stderr
        found = re.findall(r"would run (?:(the atlas|page of|base model|data set) )?([^\s,]+)(, unit)?", said)
        return sorted(kind.split()[-1] if kind else f"unit of {name}" for kind, name, _ in found)

    def paper(self, slug: str) -> Path:
        """The folder of a toy paper's code."""
        return self.path / "workflow/papertrial/papers/toys" / slug.replace("-", "_")

    def units(self, scale: str = "smoke") -> list[Path]:
        return sorted(u for u in (self.path / "data/runs" / scale).glob("toys/*/*@*") if u.is_dir())

    def edit(self, file: Path, old: str, new: str) -> None:
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkout(tmp_path_factory.mktemp("template") / "checkout", "first", "second").path


@pytest.fixture
def checkout(template: Path, tmp_path: Path) -> Checkout:
    """The engine with two toy papers, toys/first and toys/second, under git."""
    return Checkout(Path(shutil.copytree(template, tmp_path / "checkout")))


def make_checkout(path: Path, *slugs: str) -> Checkout:
    ignore = shutil.ignore_patterns("__pycache__", ".snakemake", "*.egg-info")
    shutil.copytree(ROOT / "workflow", path / "workflow", ignore=ignore)
    for name in EMPTIED:
        folder = path / "workflow/papertrial" / name
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "__init__.py").write_text(f'"""{name}."""\n')
    for name in ("sources.py", "archives.py"):
        shutil.copy(ROOT / "workflow/papertrial/data" / name, path / "workflow/papertrial/data" / name)
    (path / "config/papers").mkdir(parents=True)
    (path / "config/models").mkdir()
    shutil.copy(ROOT / "config/config.yaml", path / "config")
    (path / ".dvc").mkdir()
    for name in COPIED:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, path / name)
    here = Checkout(path)
    for slug in slugs:
        here.papertrial("new", f"toys/{slug}")
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost")
    here.run(*git, "init", "-q")
    here.run(*git, "add", "-A")
    here.run(*git, "commit", "-qm", "start")
    return here
