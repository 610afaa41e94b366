"""Nothing is ever unpickled, by our code or from an artifact, and no name from outside leads out of its folder."""

import ast
from pathlib import Path

import pytest
import yaml

from papertrial.engine import artifacts
from papertrial.engine.cards import Card, parse
from papertrial.engine.errors import PapertrialError

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


SKELETON = yaml.safe_load((ROOT / "workflow/papertrial/engine/skeleton/card.yaml").read_text())


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "..", ".hidden", "a/b", "a b", ""])
@pytest.mark.parametrize("where", ["problems", "methods", "slug", "needs"])
def test_a_name_in_a_card_that_would_lead_out_of_a_folder_is_refused(where, name):
    """Names of papers, methods, problems and what they need become parts of paths."""
    good = {**SKELETON, "slug": "toy", "chapter": "toys"}
    parse(Card, good, "card.yaml")
    changed = {
        "problems": {**good["problems"], name: {}},
        "methods": {**good["methods"], name: {"role": "baseline"}},
        "slug": name,
        "needs": {"datasets": [name], "models": [name + "/0"]},
    }
    with pytest.raises(PapertrialError, match=f"card.yaml: {where}"):
        parse(Card, {**good, where: changed[where]}, "card.yaml")
