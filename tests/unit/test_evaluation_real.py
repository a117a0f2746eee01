"""The part on real processes: its scripts end, and the page tells what they told."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bench.evaluation import quick, real
from bench.evaluation.page import write
from bench.evaluation.real import Script
from bench.evaluation.verdicts import verdicts
from bench.processes import TookTooLong, end, run_within

from support.evaluation import HOW, made, tried

RATIO = {"isolated": 40.0, "shared": 8.0, "ratio": 5.0}
PAIR = {"measured": 100.0, "simulated": 90.0}
SPREAD = {"count": 900, "median_ms": 0.4, "p99_ms": 3.0, "max_ms": 9.0}
SHARED = {"minutes": 3.0, "others": 0.25}


def told() -> dict[str, Any]:
    """As the three scripts tell it."""
    return {
        "tenants": {
            "rows": 32, "cores": 2, "by": [{"overlap": 0.75, "CPU-seconds": RATIO, "raw": {}}],
        } | SHARED,
        "fidelity": {
            "rows": 12, "sessions": [{"workers": "one", **dict.fromkeys(real.PARTS, PAIR)}],
        } | SHARED,
        "decisions": {
            "start": SPREAD, "steady": SPREAD, "event": SPREAD, "tasks": 1_000_000, "keys": 200,
            "workers": 1000, "bytes_per_ready_task": 900.0, "expand_us_per_task": 9.0,
            "grant_and_result_us_per_task": 20.0, "mean_batch": 90.0,
        } | SHARED,
    }  # fmt: skip


def test_the_page_tells_what_was_measured(tmp_path: Path) -> None:
    matrix = quick.matrix({})
    write(matrix, made(matrix), HOW, tried(matrix), tmp_path, told())
    page = (tmp_path / "evaluation.md").read_text()
    assert "| 75% | CPU-seconds | 40.0 | 8.0 | 5.00x |" in page
    assert "| one | makespan, s | 100.0 | 90.0 | -10% |" in page
    assert "A ready task takes 900 bytes" in page
    assert "they took at most 25% of its processors" in page
    assert json.loads((tmp_path / "evaluation.json").read_text())["real"] == told()


def test_real_figures_are_judged() -> None:
    matrix = quick.matrix({})
    bad = told()
    bad["tenants"]["by"][0]["CPU-seconds"] = RATIO | {"ratio": 3.9}
    bad["fidelity"]["sessions"][0]["cpu_s"] = {"measured": 100.0, "simulated": 130.0}
    bad["decisions"]["steady"] = SPREAD | {"p99_ms": 11.0}
    missed = {one.name for one in verdicts(matrix, made(matrix), bad) if not one.met}
    assert missed == {"real_cpu_ratio_75", "fidelity_cpu_s", "decision_p99_ms"}
    assert all(one.met for one in verdicts(matrix, made(matrix), told()))


def test_a_script_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bench").mkdir()
    counting = "import json; open('ran', 'a').write('x'); print(json.dumps({'n': 1}))"
    (tmp_path / "bench" / "count.py").write_text(counting)
    monkeypatch.setattr(real, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    scripts = (Script("count", (), 60.0, prints=True),)
    first = real.measured(tmp_path / "kept", scripts)
    assert first["count"]["n"] == 1 and first["count"]["minutes"] < 1
    assert real.measured(tmp_path / "kept", scripts) == first
    assert (tmp_path / "ran").read_text() == "x"
    (tmp_path / "bench" / "count.py").write_text(counting + "  # another version")
    assert real.measured(tmp_path / "kept", scripts)["count"]["code"] != first["count"]["code"]
    assert (tmp_path / "ran").read_text() == "xx"


#: Starts a process in a session of its own, says which, and does not end.
STUCK = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True)
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(600)
"""


def test_what_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with pytest.raises(TookTooLong, match="had not ended after 2 s; it was killed"):
        run_within([sys.executable, "-c", STUCK, str(note)], 2.0)
    state = Path(f"/proc/{note.read_text()}/stat")
    deadline = time.monotonic() + 10
    while state.exists() and ") Z " not in state.read_text():
        assert time.monotonic() < deadline, "its child lives"
        time.sleep(0.05)


def test_what_fails_is_told() -> None:
    with pytest.raises(RuntimeError, match="status 3"):
        run_within([sys.executable, "-c", "raise SystemExit(3)"], 60.0)


def test_a_process_that_will_not_end_is_killed() -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('x', flush=True); "
    command = [sys.executable, "-c", deaf + "time.sleep(600)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        assert end(process, grace_s=0.2) == 1
        assert process.returncode == -9
        assert end(process) == 0
