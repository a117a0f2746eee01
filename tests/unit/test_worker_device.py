"""A worker's machine: what it is called, what is measured of it, and how often."""

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowmesh.core import datasheet
from flowmesh.worker import device, measure
from flowmesh.worker.children import environment
from flowmesh.worker.device import Gauge
from flowmesh.worker.settings import WorkerSettings

FIGURES = {"flops_per_s": 4e10, "bandwidth_bytes_per_s": 8e9, "load_bytes_per_s": 2e9}


@pytest.fixture(autouse=True)
def no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(device, "_processor", lambda: "Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz")


def settings(home: Path, **more: Any) -> WorkerSettings:
    home.mkdir(parents=True, exist_ok=True)
    plain: dict[str, Any] = {"operators": {}, "memory_bytes": 1 << 30}
    return WorkerSettings("http://nowhere", home, **plain | more)


def looked(home: Path, **more: Any) -> Gauge:
    gauge = Gauge(settings(home, **more))
    gauge.look()
    return gauge


class Trials:
    """Stands for `measure.py`: a program that says `says` and notes that it ran."""

    def __init__(self, folder: Path, says: str) -> None:
        self._ran = folder / "ran"
        script = folder / "trial"
        script.write_text(f"#!/bin/sh\necho $1 $2 $3 >> {self._ran}\nsleep 0.2\necho '{says}'\n")
        script.chmod(0o755)
        self.program = str(script)

    @property
    def count(self) -> int:
        return len(self._ran.read_text().splitlines()) if self._ran.exists() else 0


@pytest.fixture
def trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trials:
    made = Trials(tmp_path, json.dumps(FIGURES))
    monkeypatch.setattr("sys.executable", made.program)
    return made


ENV = {"PATH": "/bin:/usr/bin"}


def test_equal_machines_are_of_one_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = looked(tmp_path / "a"), looked(tmp_path / "b")
    assert one.device.kind == other.device.kind == "intel-xeon-e5-2680-v4-1t"
    assert looked(tmp_path / "c", threads=2).device.kind == "intel-xeon-e5-2680-v4-2t"
    monkeypatch.setattr(device, "_processor", lambda: "AMD EPYC 7763 64-Core Processor")
    assert looked(tmp_path / "d").device.kind == "amd-epyc-7763-64-core-1t"


def test_before_a_trial_there_is_a_guess(tmp_path: Path) -> None:
    gauge = looked(tmp_path)
    assert not gauge.is_measured
    assert gauge.device.flops_per_s == datasheet.THREAD_FLOPS_PER_S
    assert gauge.device.memory_bytes == 1 << 30
    assert gauge.device.busy_w > gauge.device.idle_w > 0


async def test_a_trial_is_kept_and_made_again_for_another_machine(
    tmp_path: Path, trials: Trials
) -> None:
    gauge = looked(tmp_path / "home")
    await gauge.measure(ENV)
    assert gauge.is_measured
    assert gauge.device.flops_per_s == 4e10 and gauge.device.load_bytes_per_s == 2e9
    again = looked(tmp_path / "home")
    assert again.is_measured and again.device == gauge.device
    assert not looked(tmp_path / "home", threads=2).is_measured
    assert trials.count == 1


async def test_workers_of_one_machine_measure_once(tmp_path: Path, trials: Trials) -> None:
    store = tmp_path / "home" / "store"
    store.mkdir(parents=True)
    gauges = [looked(tmp_path / "home" / "workers" / str(n), store=store) for n in range(3)]
    await asyncio.gather(*(gauge.measure(ENV) for gauge in gauges))
    assert trials.count == 1
    assert {gauge.device.flops_per_s for gauge in gauges} == {4e10}
    assert gauges[0].device.fetch_bytes_per_s > 1e11, "blobs are used in place"


@pytest.mark.parametrize("says", ["", "no JSON", '{"flops_per_s": "fast"}'])
async def test_a_trial_that_fails_leaves_the_guess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    monkeypatch.setattr("sys.executable", Trials(tmp_path, says).program)
    gauge = looked(tmp_path / "home")
    before = gauge.device
    await gauge.measure(ENV)
    assert gauge.device == before
    assert not (tmp_path / "home" / "device.json").exists()


async def test_what_is_no_record_of_a_trial_is_not_believed(tmp_path: Path, trials: Trials) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "device.json").write_text('{"version": 0}')
    gauge = looked(home)
    assert not gauge.is_measured
    await gauge.measure(ENV)
    old = json.loads((home / "device.json").read_text())
    (home / "device.json").write_text(json.dumps({**old, "version": device.VERSION + 1}))
    assert not looked(home).is_measured


async def test_a_slow_worker_is_of_another_kind(tmp_path: Path, trials: Trials) -> None:
    plain, slow = looked(tmp_path / "a"), looked(tmp_path / "b", slowdown=2.5)
    await plain.measure(ENV)
    await slow.measure(ENV)
    assert slow.device.kind == f"{plain.device.kind}-slow2.5"
    assert slow.device.flops_per_s == plain.device.flops_per_s / 2.5
    assert slow.device.load_bytes_per_s == plain.device.load_bytes_per_s / 2.5


def test_energy_is_between_idle_and_busy(tmp_path: Path) -> None:
    gauge = looked(tmp_path, threads=2)
    idle, busy = gauge.device.idle_w, gauge.device.busy_w
    assert gauge.joules(10, 0) == pytest.approx(10 * idle)
    assert gauge.joules(10, 20) == pytest.approx(10 * busy)
    assert gauge.joules(10, 10) == pytest.approx(5 * (idle + busy))
    assert gauge.joules(10, 90) == pytest.approx(10 * busy), "never more than busy"


def smi(tmp_path: Path, *lines: str) -> None:
    """An `nvidia-smi` that says so."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvidia-smi"
    text = "\n".join(lines)
    program.write_text(f"#!/bin/sh\necho '{text}'\n")
    program.chmod(0o755)


def test_gpus_are_known_by_their_data_sheet(tmp_path: Path) -> None:
    smi(tmp_path, *["NVIDIA H100 80GB HBM3, 81559, 650.00, 71.5"] * 2)
    found = looked(tmp_path / "home", devices=2).device
    assert found.kind == "H100-x2"
    assert found.flops_per_s == 2 * 989e12
    assert found.memory_bytes == 2 * 81559 * 2**20
    assert (found.idle_w, found.busy_w) == (143.0, 1300.0), "the limit that is set counts"
    assert looked(tmp_path / "home", devices=1).device.kind == "H100"


def test_a_gpu_without_a_data_sheet_has_a_name_and_a_memory(tmp_path: Path) -> None:
    smi(tmp_path, "NVIDIA Future 9, 1000, [N/A], [N/A]")
    found = looked(tmp_path / "home").device
    assert (found.kind, found.memory_bytes) == ("nvidia-future-9", 1000 * 2**20)
    assert (found.flops_per_s, found.busy_w) == (0, 0)


def test_a_gpu_counts_as_busy_while_it_executes(tmp_path: Path) -> None:
    smi(tmp_path, "Tesla T4, 15360, 70.00, 10.0")
    gauge = looked(tmp_path / "home")
    assert gauge.joules(10, 0.5) == pytest.approx(700)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA A100 80GB PCIe", "A100-80-PCIe"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("L4", "L4"),
    ],
)
def test_names_of_gpus(name: str, kind: str) -> None:
    found = datasheet.gpu(name)
    assert found is not None and found.kind == kind


@pytest.mark.parametrize("name", ["NVIDIA L40", "NVIDIA GeForce RTX 3090 Ti", "Quadro", ""])
def test_other_gpus_are_not_taken_for_them(name: str) -> None:
    assert datasheet.gpu(name) is None


def test_several_devices_compute_together() -> None:
    one = datasheet.GPUS["L4"]
    two = datasheet.several(one, 2)
    assert two == replace(
        one,
        kind="L4-x2",
        flops_per_s=2 * one.flops_per_s,
        bandwidth_bytes_per_s=2 * one.bandwidth_bytes_per_s,
        memory_bytes=2 * one.memory_bytes,
        busy_w=2 * one.busy_w,
    )
    assert datasheet.several(one, 1) is one


def test_the_trial_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any machine that runs these tests computes 1 to 10,000 GFLOP/s a thread."""
    for name in ("_MATMUL_S", "_COPY_S", "_DISK_S"):
        monkeypatch.setattr(measure, name, 0.05)
    monkeypatch.setattr(measure, "_COPIED_BYTES", 8 << 20)
    found = measure.main(1, tmp_path)
    assert 1e9 < found["flops_per_s"] < 1e13
    assert 1e8 < found["bandwidth_bytes_per_s"] < 1e13
    assert found["load_bytes_per_s"] > 1e6
    assert os.listdir(tmp_path) == []


async def test_the_trial_runs_as_a_program(tmp_path: Path) -> None:
    gauge = looked(tmp_path)
    await gauge.measure(environment(1))
    assert gauge.is_measured and (tmp_path / "device.json").exists()
    assert gauge.device.flops_per_s != datasheet.THREAD_FLOPS_PER_S
