"""A training that is told to stop, or killed, and goes on: the same bits, nothing left behind, little time lost."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from papertrial.engine.preemption import FileCheckpoint, Stopped, on_sigterm

RECIPE = '''"""slow: a random walk, a step at a time."""

import time

import numpy as np

from papertrial.engine.results import Inputs, Results


def train(part, settings, inputs: Inputs, device, checkpoint) -> Results:
    generator = np.random.Generator(np.random.PCG64(int(part)))
    x, start = np.zeros(3), 0
    saved = checkpoint.load()
    if saved is not None:
        x, start = saved["x"], saved["step"].item()
        generator.bit_generator.state = {**generator.bit_generator.state, "state": unpack(saved["generator"])}
    print(f"from step {start}", flush=True)
    for step in range(start, settings["steps"]):
        x = 0.99 * x + generator.standard_normal(3)
        time.sleep(settings["pause"])
        done = step + 1
        if done % settings["save_every"] == 0 or checkpoint.asked:
            checkpoint.save({"x": x, "step": np.array(done), "generator": pack(generator)})
    return Results([{"seed": int(part), "norm": float(np.linalg.norm(x))}], state={"x": x})


def pack(generator) -> np.ndarray:
    state = generator.bit_generator.state["state"]
    return np.frombuffer(b"".join(state[k].to_bytes(16, "big") for k in ("state", "inc")), np.uint8)


def unpack(words: np.ndarray) -> dict:
    data = words.tobytes()
    return {"state": int.from_bytes(data[:16], "big"), "inc": int.from_bytes(data[16:], "big")}
'''
CARD = """about: A random walk.
settings: {steps: 60, pause: 0.05, save_every: 20}
scales:
  smoke: {parts: ["0"]}
  laptop: {parts: ["0"]}
  paper: {parts: ["0"]}
"""


@pytest.fixture
def walk(checkout):
    """A checkout whose first paper needs a base model of three seconds; its path, and what it comes to undisturbed."""
    (checkout.path / "workflow/papertrial/models/slow.py").write_text(RECIPE)
    (checkout.path / "config/models/slow.yaml").write_text(CARD)
    checkout.edit(checkout.path / "config/papers/toys/first.yaml", "problems:", "needs: {models: [slow]}\nproblems:")
    checkout.snakemake("-n")
    plan = json.loads((checkout.path / "data/scratch/plan/smoke/models/slow.json").read_text())
    generator, x = np.random.Generator(np.random.PCG64(0)), np.zeros(3)
    for _ in range(60):
        x = 0.99 * x + generator.standard_normal(3)
    return checkout, plan["parts"]["0"]["path"], float(np.linalg.norm(x))


def begin(checkout, *command: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=checkout.path,
        env=checkout.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def norm(checkout, path: str) -> float:
    import pyarrow.parquet as pq

    return pq.read_table(checkout.path / path / "results.parquet")["norm"][0].as_py()


def scratch(checkout, path: str):
    return checkout.path / "data/scratch" / path.rpartition("@")[2]


def until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_told_to_stop_it_saves_and_goes_on_from_there(walk):
    checkout, path, undisturbed = walk
    running = begin(checkout, "papertrial", "model", path)
    assert running.stdout.readline() == "from step 0\n"
    time.sleep(0.3)  # before the first of its own saves
    running.send_signal(signal.SIGTERM)
    _, told = running.communicate(timeout=30)
    assert running.returncode == 1
    assert f"told to stop; state saved at data/scratch/{path.rpartition('@')[2]}/checkpoint.safetensors" in told
    assert not (checkout.path / path).exists()
    step = int(checkout.papertrial("model", path).stdout.split()[-1])
    assert 1 <= step < 20
    assert norm(checkout, path) == undisturbed
    assert not scratch(checkout, path).exists()


def test_killed_it_goes_on_from_its_last_save(walk):
    checkout, path, undisturbed = walk
    running = begin(checkout, "papertrial", "model", path)
    until(lambda: (scratch(checkout, path) / "checkpoint.safetensors").exists())
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert checkout.papertrial("model", path).stdout == "from step 20\n"
    assert norm(checkout, path) == undisturbed
    assert not scratch(checkout, path).exists()


def test_snakemake_and_its_job_told_to_stop_then_the_same_command(walk):
    """As when a cluster takes a node back: SIGTERM to Snakemake and to the job, and later the same command again."""
    checkout, path, undisturbed = walk
    page = "reports/smoke/toys/first.html"
    log = checkout.path / f"data/scratch/logs/{path.removeprefix('data/')}.log"
    running = begin(checkout, "snakemake", "--cores", "1", page)
    until(lambda: log.exists() and "from step 0" in log.read_text())
    running.send_signal(signal.SIGTERM)
    job = subprocess.run(["pgrep", "-f", f"papertrial model {path}"], capture_output=True, text=True).stdout.split()
    for pid in job:
        subprocess.run(["kill", "-TERM", pid], check=False)
    said = running.communicate(timeout=60)[1]
    assert running.returncode != 0 and "told to stop; state saved" in said
    checkout.snakemake(page)
    assert int(log.read_text().split()[-1]) > 0, "it began afresh"
    assert norm(checkout, path) == undisturbed
    assert not scratch(checkout, path).exists()


def test_a_unit_told_to_stop_says_so_and_leaves_nothing(checkout):
    method = checkout.paper("first") / "method.py"
    checkout.edit(
        method, "return Results(", "print('begun', flush=True)\n    import time; time.sleep(20)\n    return Results("
    )
    checkout.snakemake("-n")
    plan = json.loads((checkout.path / "data/scratch/plan/smoke/toys/first.json").read_text())
    running = begin(checkout, "papertrial", "unit", plan["units"]["all"]["path"])
    assert running.stdout.readline() == "begun\n"
    running.send_signal(signal.SIGTERM)
    _, told = running.communicate(timeout=10)
    assert running.returncode == 1 and "told to stop before it finished" in told
    assert not checkout.units()


def test_save_ends_the_job_only_once_asked(tmp_path):
    checkpoint = FileCheckpoint(tmp_path / "fp/checkpoint.safetensors")
    checkpoint.save({"step": np.array(1)})
    with on_sigterm(checkpoint.ask):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Stopped, match="state saved"):
        checkpoint.save({"step": np.array(2)})
    assert checkpoint.load()["step"] == 2
    checkpoint.discard()
    assert checkpoint.load() is None and not (tmp_path / "fp").exists()


def test_a_second_sigterm_ends_the_process_and_afterwards_all_is_as_before():
    before = signal.getsignal(signal.SIGTERM)
    with on_sigterm(lambda: None):
        signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before
