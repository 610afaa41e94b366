"""Locks, conda and containers come from one source and say the same versions."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
ENVS = ROOT / "envs"


def generator():
    spec = importlib.util.spec_from_file_location("generate", ENVS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins(name: str) -> dict[str, str]:
    lines = (ENVS / f"{name}.lock").read_text().split()
    assert all(re.fullmatch(r"[a-z0-9._-]+==[A-Za-z0-9.!]+", line) for line in lines), "plain pins only"
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize(
    "name", ["cpu.lock", "environment.yaml", "environment-cuda.yaml", "Dockerfile", "apptainer.def"]
)
def test_what_is_committed_is_what_is_generated(name):
    assert (ENVS / name).read_text() == generator().generated()[name], "run make envs"


def test_cuda_adds_only_its_own_libraries_to_the_same_versions():
    cpu, cuda = pins("cpu"), pins("cuda")
    assert {name: cuda[name] for name in cpu} == cpu
    added = cuda.keys() - cpu.keys()
    assert {"nvidia-cudnn-cu13", "triton"} <= added
    assert all(name.startswith(("nvidia-", "cuda-")) or name == "triton" for name in added)


def test_the_locks_hold_what_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + [r for group in project["optional-dependencies"].values() for r in group]
    cpu = pins("cpu")
    for requirement in map(Requirement, asked):
        name = requirement.name.lower().replace("_", "-")
        assert cpu.get(name) and requirement.specifier.contains(cpu[name]), f"{requirement} is not {cpu.get(name)}"


def test_conda_and_the_container_install_these_locks_on_the_same_python():
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    for name, flavour in (("environment.yaml", "cpu"), ("environment-cuda.yaml", "cuda")):
        found = yaml.safe_load((ENVS / name).read_text())["dependencies"]
        assert found == [f"python={python}", "pip", {"pip": [f"-r {flavour}.lock"]}]
    for name in ("Dockerfile", "apptainer.def"):
        text = (ENVS / name).read_text()
        assert f"python:{python}-slim" in text and "pip install --no-cache-dir -r /envs/lock" in text
        for flavour in re.findall(r"FLAVOUR=(\w+)", text):
            assert (ENVS / f"{flavour}.lock").exists()
