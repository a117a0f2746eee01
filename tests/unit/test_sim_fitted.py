"""Each fitted generator against the trace that it stands for, where we have the trace."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from flowmesh.sim import data, fitted
from flowmesh.sim.market import _PRICES

RNG_SEED = 5


def rng() -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(RNG_SEED))


def trace(name: str) -> Path:
    path = data.find(name)
    if path is None:
        pytest.skip("needs $FLOWMESH_DATA")
    return path


def within(made: float, real: float, tolerance: float) -> bool:
    return abs(made / real - 1) <= tolerance


def test_gaps_have_the_variation_asked_for() -> None:
    for cv in (0.5, 1.0, 3.0):
        times = fitted.renewal(rng(), 20_000, 3600.0, cv)
        gaps = np.diff(times)
        assert within(float(gaps.std() / gaps.mean()), cv, 0.08)
        assert times[0] >= 0 and times[-1] <= 3600 and (gaps >= 0).all()


def test_azures_requests() -> None:
    """Quantiles within 5 %, means within 15 %, gaps' variation within 2 %."""
    seconds, tokens = data.azure(trace(data.AZURE))
    prompt, output = fitted.azure_lengths(rng(), 50_000)
    for made, real in ((prompt, tokens[:, 0]), (output, tokens[:, 1])):
        for share in (0.1, 0.25, 0.5, 0.75, 0.9):
            assert within(float(np.quantile(made, share)), float(np.quantile(real, share)), 0.05)
        assert within(float(made.mean()), float(real.mean()), 0.15)
    gaps = np.diff(seconds)
    assert within(float(gaps.std() / gaps.mean()), fitted.AZURE_CV, 0.02)


def test_servegens_tenants() -> None:
    """Median burstiness within 10 %, its 90th percentile within 25 %; spread of rates, 25 %."""
    path = trace(data.SERVEGEN)
    clients = data.servegen(path)
    real = np.asarray([cv for _, cv in clients.values()])
    made = fitted.burstiness(rng(), 20_000)
    assert within(float(np.median(made)), float(np.median(real)), 0.1)
    assert within(float(np.quantile(made, 0.9)), float(np.quantile(real, 0.9)), 0.25)
    sigmas = [
        np.std([np.log(rate) for name, (rate, _) in clients.items() if name.startswith(kind)])
        for kind in ("language", "reason")
    ]
    drawn = np.std(np.log(fitted.rates(rng(), 20_000)))
    assert within(float(drawn), float(np.mean(sigmas)), 0.25)


def test_mooncakes_prefixes() -> None:
    """Hits among blocks within 3 points; mean blocks of a prompt within 20 %."""
    requests = data.mooncake(trace(data.MOONCAKE))
    seen: set[int] = set()
    hits = total = 0
    for hashes in requests:
        had = 0
        while had < len(hashes) and hashes[had] in seen:
            had += 1
        hits, total = hits + had, total + len(hashes)
        seen.update(hashes)
    made = fitted.conversations(rng(), len(requests))
    drawn_hits = sum(had for _, _, had in made) / sum(size for _, size, _ in made)
    assert abs(hits / total - fitted.MOONCAKE_HITS) < 0.005
    assert abs(drawn_hits - hits / total) < 0.03
    assert within(sum(size for _, size, _ in made) / len(made), total / len(requests), 0.2)


def test_bamboos_interruptions() -> None:
    """Removals a machine and hour within 2 %; how many go together within 2 %."""
    events = data.bamboo(trace(data.BAMBOO))
    live, area, last = 0, 0.0, 0.0
    for at_s, away in events:
        area, last = area + live * (at_s - last), at_s
        live += -1 if away else 1
    removed = [at_s for at_s, away in events if away]
    assert within(len(removed) / (area / 3600), fitted.BAMBOO_PER_MACHINE_HOUR, 0.02)
    assert within(len(removed) / len(dict.fromkeys(removed)), fitted.BAMBOO_TOGETHER, 0.02)
    lives = fitted.lifetimes_s(rng(), 50_000, fitted.BAMBOO_PER_MACHINE_HOUR)
    assert within(float(lives.mean()), 3600 / fitted.BAMBOO_PER_MACHINE_HOUR, 0.02)


def test_gavels_bursts() -> None:
    gaps = np.diff(data.gavel(trace(data.GAVEL)))
    assert within(float(gaps.std() / gaps.mean()), fitted.GAVEL_CV, 0.02)


def test_acmes_jobs() -> None:
    with trace(data.ACME).open() as file:
        seren = next(row for row in csv.DictReader(file) if row["id"] == "Seren")
    assert float(seren["med_run_time_gpu"]) == fitted.ACME_RUN_MEDIAN_S
    assert within(float(seren["avg_run_time_gpu"]), fitted.ACME_RUN_MEAN_S, 0.001)
    assert float(seren["fail_rate_gpu"]) == fitted.ACME_FAILED
    assert float(seren["cancel_rate_gpu"]) == fitted.ACME_CANCELLED


def test_the_built_in_prices_are_the_files() -> None:
    found = data.prices(trace(data.PRICES))
    for name, (on_demand, marketplace, spot) in _PRICES.items():
        if name == "cpu":
            continue
        told = {"on_demand": on_demand, "marketplace": marketplace, "spot": spot}
        assert {kind: usd for kind, usd in told.items() if usd} == pytest.approx(found[name])


def test_the_data_folder_is_where_the_variable_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(os.environ, "FLOWMESH_DATA", str(tmp_path))
    assert data.find(data.PRICES) is None
    (tmp_path / "prices").mkdir()
    (tmp_path / data.PRICES).write_text("gpu,on_demand\nH100,1\n")
    assert data.find(data.PRICES) == tmp_path / data.PRICES
    monkeypatch.setitem(os.environ, "FLOWMESH_DATA", str(tmp_path / "nowhere"))
    assert data.folder() is None
