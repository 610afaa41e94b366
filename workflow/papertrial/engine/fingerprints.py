"""A hash of everything that determines an artifact.

What counts: the import closure of the code that makes it, as normalised syntax trees (so comments, docstrings
and formatting don't), its settings, the fingerprints of what it reads, the thread count, the engine's protocol
and the major versions of the numeric libraries. The device does not: it goes to provenance only.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PROTOCOL = 1  # raised when the engine itself changes what a run computes
THREADS = 1
LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch")
PACKAGE = Path(__file__).parents[1]
# A download is settled by its content hash, so the code that fetches and unpacks it does not count.
OUTSIDE = frozenset({"papertrial.data.sources", "papertrial.data.archives"})


def digest(value: Any) -> str:
    """Twelve hex digits of a plain value; keys sorted, so their order doesn't count."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@cache
def closure(module: str) -> tuple[str, ...]:
    """The modules of the package that ``module`` imports, directly or not, with their ancestors' __init__."""
    graph = _graph()
    if module not in graph.modules:
        raise ModuleNotFoundError(module)
    found: set[str] = set()
    queue = [module]
    while queue:
        name = queue.pop()
        if name in found or name in OUTSIDE:
            continue
        found.add(name)
        queue.extend(graph.find_modules_directly_imported_by(name))
        if "." in name:  # importing a module runs its packages' __init__, which grimp doesn't count
            queue.append(name.rpartition(".")[0])
    return tuple(sorted(found))


@cache
def _graph() -> Any:
    import grimp

    return grimp.build_graph("papertrial", cache_dir=None)


def code(module: str) -> dict[str, str]:
    """{module: hash of its normalised syntax tree} for the whole closure."""
    return {name: code_hash(name) for name in closure(module)}


def imports(library: str, modules: Iterable[str]) -> bool:
    """Whether one of the modules imports a library, at its top or inside a function."""
    pattern = re.compile(rf"^\s*(import|from) {library}\b", re.MULTILINE)
    return any(pattern.search(source_of(m).read_text(encoding="utf-8")) for m in modules)


def source_of(module: str) -> Path:
    folder = PACKAGE.joinpath(*module.split(".")[1:])
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


@cache
def code_hash(module: str) -> str:
    """Hash of one module's syntax tree without docstrings, positions and formatting."""
    tree = ast.parse(source_of(module).read_bytes())
    return hashlib.sha256("".join(_canonical(tree)).encode()).hexdigest()[:12]


def _canonical(node: Any) -> list[str]:
    """The tree as text that stays the same across Python versions: empty fields are left out."""
    if isinstance(node, ast.AST):
        parts = [type(node).__name__, "("]
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(value, list):
                value = _without_docstring(node, value)
            if value is None or value == [] or name == "kind":
                continue
            parts += [name, "=", *_canonical(value), ","]
        return [*parts, ")"]
    if isinstance(node, list):
        return ["[", *(piece for item in node for piece in (*_canonical(item), ",")), "]"]
    return [repr(node)]


def _without_docstring(node: ast.AST, body: list[ast.stmt]) -> list[ast.stmt]:
    documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    first = body[0] if body else None
    is_text = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return body[1:] if documented and is_text else body


@cache
def libraries() -> dict[str, str]:
    """Major versions of the numeric libraries."""

    def major(name: str) -> str:
        try:
            return version(name).split(".")[0]
        except PackageNotFoundError:
            return "none"

    return {name: major(name) for name in LIBRARIES}


def artifact(modules: dict[str, str], settings: Any, needs: list[str]) -> str:
    """The fingerprint of a run, a base model or a data set."""
    return digest(
        {
            "protocol": PROTOCOL,
            "threads": THREADS,
            "libraries": libraries(),
            "modules": modules,
            "settings": settings,
            "needs": sorted(needs),
        }
    )
