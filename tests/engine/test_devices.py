"""One job a GPU unless more fit, locks that a kill drops, numerics that a card must allow."""

import fcntl
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from papertrial.engine import devices
from papertrial.engine.errors import PapertrialError

PACKAGE = Path(devices.__file__).parents[1]
JOB = """
import sys, time
from papertrial.engine import devices
devices.built_for_cuda = lambda: True
devices.resolve = lambda device, torch_needed: "cuda"
devices.set_numerics = lambda allowed: None
import os
with devices.lent("cuda", True, [{}], fit=int(sys.argv[1])) as device:
    print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def machine(tmp_path):
    """Start jobs on a machine whose driver reports two GPUs."""
    tool = tmp_path / "bin/nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nprintf 'GPU-a\\nGPU-b\\n'\n")
    tool.chmod(0o755)
    env = {k: v for k, v in os.environ.items() if k not in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID")}
    env |= {"PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(PACKAGE.parent)}
    started = []

    def job(fit: int = 1, **more: str) -> subprocess.Popen:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-c", JOB, str(fit)]
        started.append(subprocess.Popen(command, cwd=tmp_path, env=env | more, **pipes))
        return started[-1]

    yield job
    for process in started:
        process.kill()
        process.communicate()


def test_two_jobs_get_two_gpus_and_a_third_waits_for_the_one_that_a_kill_frees(machine):
    first, second = machine(), machine()
    taken = {first: first.stdout.readline().strip(), second: second.stdout.readline().strip()}
    assert set(taken.values()) == {"GPU-a", "GPU-b"}
    third = machine()
    assert third.stdout.readline().startswith("waiting for a GPU: GPU-a, GPU-b taken")
    assert select.select([third.stdout], [], [], 1.5)[0] == [], "it took one that was taken"
    second.send_signal(signal.SIGKILL)
    assert third.stdout.readline().strip() == taken[second]


def test_as_many_share_a_gpu_as_fit_and_none_joins_one_that_needs_it_whole(machine):
    whole = machine()
    other = {"GPU-a": "GPU-b", "GPU-b": "GPU-a"}[whole.stdout.readline().strip()]
    halves = [machine(fit=2) for _ in range(2)]
    assert [h.stdout.readline().strip() for h in halves] == [other] * 2
    assert machine(fit=2).stdout.readline().startswith("waiting")
    assert machine(fit=12).stdout.readline().startswith("waiting")


def test_only_what_the_user_left_visible_is_taken(machine):
    assert machine(CUDA_VISIBLE_DEVICES="3").stdout.readline() == "3\n"
    assert machine(CUDA_VISIBLE_DEVICES="3").stdout.readline().startswith("waiting for a GPU: 3 taken")


def test_under_slurm_the_choice_is_made(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert devices.gpus() == []
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_no_driver_no_gpus(monkeypatch):
    for name in ("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert devices.gpus() == []


def test_half_of_the_locks_is_none_of_them(tmp_path):
    holder = devices._take(tmp_path, 8)
    assert devices._take(tmp_path, 6) == []  # four are free
    rest = devices._take(tmp_path, 4)
    assert len(rest) == 4
    for lock in [*holder, *rest]:
        lock.close()
    with (tmp_path / "0.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_share_that_does_not_divide_is_told():
    with pytest.raises(PapertrialError, match="per_gpu: 5 is not a divisor of 12"):
        devices._wait(["GPU-a"], 5)


def test_a_job_that_asks_for_the_cpu_takes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "gpus", lambda: pytest.fail("asked for GPUs"))
    for device, torch_needed in (("cpu", True), ("cuda", False)):
        with devices.lent(device, torch_needed, [{}]) as found:
            assert found == "cpu"
    assert not list(tmp_path.iterdir())


def test_lower_precision_only_where_everything_in_the_job_allows_it():
    assert devices.precision([{"precision": "tf32"}, {"precision": "tf32", "lr": 1}]) == "tf32"
    assert devices.precision([{"precision": "tf32"}, {}]) == "highest"
    assert devices.precision([]) == "highest"
    with pytest.raises(PapertrialError, match="precision: 'fp8' is none of highest, tf32, bf16"):
        devices.precision([{"precision": "fp8"}])


def test_numerics_are_set_before_anything_runs(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    backends = torch.backends
    before = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cudnn.benchmark
    try:
        backends.cudnn.benchmark = True
        for allowed in ("tf32", "bf16", "highest"):
            devices.set_numerics(allowed)
            assert backends.cuda.matmul.allow_tf32 == backends.cudnn.allow_tf32 == (allowed == "tf32")
        assert torch.are_deterministic_algorithms_enabled() and not backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cudnn.benchmark = before
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_no_code_names_cuda_where_it_could_name_the_device():
    """A tensor goes to the device that the job was given: no .cuda(), no device="cuda"."""
    pattern = re.compile(r"\.cuda\(\)|device\s*=\s*[\"']cuda|\.to\(\s*[\"']cuda")
    folders = [PACKAGE / name for name in ("papers", "models", "methods", "testbeds", "data")]
    files = [f for folder in folders for f in folder.rglob("*.py")]
    assert len(files) > 5
    assert not [f"{f}: {line}" for f in files for line in f.read_text().splitlines() if pattern.search(line)]
