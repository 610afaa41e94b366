"""The skeleton of a new paper: a toy trial that runs as it is, to be replaced piece by piece."""

import re
from importlib import resources
from pathlib import Path

from papertrial.engine import paths
from papertrial.engine.errors import PapertrialError

PACKAGE = Path("workflow/papertrial/papers")
TESTS = Path("tests/papers")


def write_skeleton(paper: str) -> list[Path]:
    """Write a paper's yaml, method, evidence and test.

    Args:
        paper: <chapter>/<slug>, lower-case words joined by dashes.

    Raises:
        PapertrialError: the name is not of that form, or one of the files exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*/[a-z0-9]+(-[a-z0-9]+)*", paper):
        raise PapertrialError(
            f"'{paper}' is no <chapter>/<slug>: lower-case words joined by dashes, as convex/my-paper"
        )
    chapter, slug = paper.split("/")
    module = slug.replace("-", "_")
    folder = PACKAGE / chapter / module
    files = {
        paths.PAPERS / chapter / f"{slug}.yaml": "card.yaml",
        folder / "method.py": "method.py.txt",
        folder / "evidence.py": "evidence.py.txt",
        TESTS / chapter / f"test_{module}.py": "test.py.txt",
    }
    there = [str(f) for f in files if f.exists()]
    if there:
        raise PapertrialError(f"{there[0]} exists already; choose another slug or remove it")
    for init, text in ((folder.parent, f"Chapter {chapter}."), (folder, f"{slug}: a paper on trial.")):
        init.mkdir(parents=True, exist_ok=True)
        if not (init / "__init__.py").exists():
            (init / "__init__.py").write_text(f'"""{text}"""\n')
    for file, template in files.items():
        text = resources.files(__name__).joinpath(template).read_text()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("CHAPTER", chapter).replace("SLUG", slug).replace("MODULE", module))
        print(file)
    return list(files)
