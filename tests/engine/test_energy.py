"""Energy is what counters counted: packages only, wrap-around, this job's share, nothing where anything is missing."""

import sys
from types import SimpleNamespace

import pytest

from papertrial.engine import energy
from papertrial.engine.energy import EnergyMeter


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """Two packages with a part each; the machine is busy for ten seconds, the job for one of them."""
    for name, label in (
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:1", "package-1"),
        ("intel-rapl-mmio:0", "package-0"),
        ("dtpm", "soc"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(f"{label}\n")
        (tmp_path / name / "energy_uj").write_text("900000000\n")
        (tmp_path / name / "max_energy_range_uj").write_text("1000000000\n")
    clocks = {"own": 5.0, "busy": 100.0}
    monkeypatch.setattr(energy, "cpu_seconds", lambda: clocks["own"])
    monkeypatch.setattr(energy, "busy_seconds", lambda: clocks["busy"])

    def pass_time(own: float, busy: float, **joules: float) -> None:
        clocks["own"], clocks["busy"] = clocks["own"] + own, clocks["busy"] + busy
        for name, j in joules.items():
            file = tmp_path / name.replace("_", ":").replace("rapl", "intel-rapl") / "energy_uj"
            file.write_text(f"{int(int(file.read_text()) + 1e6 * j) % 1000000000}\n")

    return tmp_path, pass_time


def test_the_job_gets_its_share_of_all_packages(powercap):
    tree, pass_time = powercap
    meter = EnergyMeter(tree)
    pass_time(own=1, busy=10, rapl_0=50, rapl_0_0=40, rapl_1=30)
    assert meter.read("cpu") == {"energy_j": pytest.approx(8.0)}


def test_a_counter_that_begins_anew(powercap):
    tree, pass_time = powercap
    meter = EnergyMeter(tree)
    pass_time(own=10, busy=10, rapl_0=150)
    assert int((tree / "intel-rapl:0/energy_uj").read_text()) < 900000000
    assert meter.read("cpu")["energy_j"] == pytest.approx(150)


def test_not_measured_without_counters(tmp_path):
    assert EnergyMeter(tmp_path / "none").read("cpu") == {}


def test_not_measured_where_counters_may_not_be_read(powercap):
    tree, _ = powercap
    for file in tree.glob("*/energy_uj"):
        file.unlink()
    assert EnergyMeter(tree).read("cpu") == {}


def test_a_gpu_adds_its_own_counter_and_without_it_nothing_is_said(powercap, monkeypatch):
    tree, pass_time = powercap
    counter = {"mj": 1000}
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: {"GPU-a": counter["mj"]}[handle],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a")
    meter = EnergyMeter(tree)
    pass_time(own=5, busy=10, rapl_0=20)
    counter["mj"] = 8000
    assert meter.read("cuda") == {"energy_j": pytest.approx(17), "gpu_energy_j": pytest.approx(7)}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert EnergyMeter(tree).read("cuda") == {}
    assert EnergyMeter(tree).read("mps") == {}


def test_the_real_machine_counts_or_says_nothing():
    found = EnergyMeter().read("cpu")
    assert found == {} or found["energy_j"] >= 0
    assert energy.busy_seconds() > 0
