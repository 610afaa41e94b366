"""Where things lie, relative to the project's root (the folder with the Snakefile).

An artifact's path carries its fingerprint: it exists, or it has to be made.
"""

from pathlib import Path

PAPERS = Path("config/papers")
MODELS = Path("config/models")
DOWNLOADS = Path("data/downloads")
RECORDED = Path("data/recorded")
REPORTS = Path("reports")
SCRATCH = Path("data/scratch")


def dataset(name: str, fingerprint: str) -> str:
    return f"data/datasets/{name}@{fingerprint}"


def model(scale: str, name: str, part: str, fingerprint: str) -> str:
    return f"data/models/{scale}/{name}/{part}@{fingerprint}"


def unit(scale: str, paper: str, name: str, fingerprint: str) -> str:
    return f"data/runs/{scale}/{paper}/{name}@{fingerprint}"


def dataset_plan() -> Path:
    return SCRATCH / "plan" / "datasets.json"


def model_plan(scale: str, name: str) -> Path:
    return SCRATCH / "plan" / scale / "models" / f"{name}.json"


def paper_plan(scale: str, paper: str) -> Path:
    return SCRATCH / "plan" / scale / f"{paper}.json"


def failure(artifact: str) -> Path:
    """Where the last failure of an artifact is told."""
    return SCRATCH / "failed" / f"{artifact}.json"


def checkpoint(fingerprint: str) -> Path:
    """Resume state, outside the declared outputs, which Snakemake deletes before a rerun."""
    return SCRATCH / fingerprint / "checkpoint.safetensors"
