"""Nothing is ever unpickled: not by our code, and nothing that could be lies among the artifacts."""

import ast
from pathlib import Path

import pytest

from papertrial.engine import artifacts

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "workflow").rglob("*.py"))
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"torch.load", "pd.read_pickle", "pandas.read_pickle", "eval", "exec", "yaml.unsafe_load"}
KINDS = {".parquet", ".safetensors", ".json", ".dvc", ""}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT / "workflow")))
def test_no_code_path_unpickles(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").split(".")[0]]
        assert not set(names) & FORBIDDEN_IMPORTS, f"{path}: line {node.lineno} imports {names}"
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in FORBIDDEN_CALLS, f"{path}: line {node.lineno}"
            allows = [k for k in node.keywords if k.arg == "allow_pickle" and getattr(k.value, "value", True)]
            assert not allows, f"{path}: line {node.lineno} allows pickles"


def test_every_artifact_here_holds_only_what_can_be_read_safely():
    """Walks data/ as far as something has run: known kinds of files, and every one opens through the checked loader."""
    for kind in ("datasets", "models", "runs"):
        for file in (ROOT / "data" / kind).rglob("*"):
            if file.is_file() and file.name != ".snakemake_timestamp" and file.name != ".gitignore":
                assert file.suffix in KINDS, f"{file}: an artifact holds parquet, safetensors and json only"
                head = file.open("rb").read(2)
                assert head != b"\x80\x04" and head != b"\x80\x05", f"{file}: starts like a pickle"
    for provenance in sorted((ROOT / "data/runs/smoke").rglob(artifacts.PROVENANCE)):
        artifacts.verify(provenance.parent)
