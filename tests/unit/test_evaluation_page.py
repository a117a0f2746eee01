"""The evaluation's page tells what the simulations told, and hides nothing."""

import json
from pathlib import Path

import pytest
from bench.evaluation import frontier, plots, quick, running, tuning
from bench.evaluation.cells import Cell
from bench.evaluation.findings import HEADLINE, all_losses, headline, useless
from bench.evaluation.matrix import ABLATIONS, ELASTIC, FIXED, OURS, SWEEPS, Matrix, shipped_haste
from bench.evaluation.page import as_json, write
from bench.evaluation.running import Outcomes, run_all
from bench.evaluation.simulating import changed, entry_of
from bench.evaluation.spreads import Spread, p95, ratio, usd
from bench.evaluation.verdicts import AT_LEAST, AT_MOST, BELOW, verdicts

from flowmesh.base.errors import SpecError
from flowmesh.sim.policies import names
from flowmesh.sim.scenario import load_scenario, shipped
from support.evaluation import HOW, made, told, tried


@pytest.fixture
def matrix() -> Matrix:
    return quick.matrix({})


def test_headline_figures_are_medians_of_ratios_seed_by_seed(matrix: Matrix) -> None:
    figures = headline(matrix, made(matrix))
    one, two = (8.0**1.01, 8.0**1.02)
    assert figures["cost_ratio_isolated"] == Spread((one + two) / 2, one, two, 2)
    assert figures["cost_over_oracle"].median == pytest.approx(10 / 9)
    assert figures["p95_ratio_best_baseline"].median < 1
    assert {*AT_LEAST, *AT_MOST, *BELOW} > {*HEADLINE}
    assert all(one.met for one in verdicts(matrix, made(matrix)))


def test_the_best_baseline_is_chosen_anew_for_each_seed(matrix: Matrix) -> None:
    outcomes = {cell: told(cell) for cell in matrix.all()}
    for policy, seed in (("strong", 1), ("fifo", 2)):
        cell = next(one for one in matrix.same_fleet(policy) if one.seed == seed)
        outcomes[cell]["latency"]["p95"] = 25.0
    figure = headline(matrix, Outcomes(outcomes))["p95_ratio_best_baseline"]
    assert figure.median == pytest.approx(50.0 / 25.0)
    (told_so,) = (
        one for one in verdicts(matrix, Outcomes(outcomes)) if one.name == "p95_ratio_best_baseline"
    )
    assert not told_so.met and told_so.reached == pytest.approx(2.0)


def test_the_page_and_its_json_come_from_the_outcomes(matrix: Matrix, tmp_path: Path) -> None:
    write(matrix, made(matrix), HOW, tried(matrix), tmp_path)
    page = (tmp_path / "evaluation.md").read_text()
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert tuple(found["headline"]) == HEADLINE
    assert found["headline"]["cost_ratio_strong"] == pytest.approx(2.0**1.015, abs=1e-2)
    assert f"{found['headline']['cost_ratio_strong']:.2f}" in page
    assert "In none of the comparisons above." in page
    assert "missed" not in page and "All aims are met." in page
    assert len(found["all"]) == len(matrix.all())
    assert "arrivals: fitted" in page
    assert "make evaluate" in page
    assert "Scenario `fixed-fleet`: 9 unlike machines that" in page


def test_other_outcomes_make_another_page(matrix: Matrix, tmp_path: Path) -> None:
    """Nothing is written by hand: worse figures are told, and where ours lost."""
    outcomes = {cell: told(cell) for cell in matrix.all()}
    for cell in matrix.same_fleet("fifo") + matrix.headline("strong"):
        outcomes[cell] |= {"usd": 1.25}
    lost = all_losses(matrix, Outcomes(outcomes))
    assert ("same fleet", "fifo") in [(one.where, one.policy) for one in lost]
    assert all(one.theirs < one.ours for one in lost)
    write(matrix, Outcomes(outcomes), HOW, tried(matrix), tmp_path)
    page = (tmp_path / "evaluation.md").read_text()
    assert "**missed**" in page
    assert "- Missed: cost of `strong`, as a multiple of ours. The aim is at least 1.5" in page
    assert "| same fleet | cost (USD) | 10 | fifo 1.25 | 8.00 |" in page
    found = as_json(matrix, Outcomes(outcomes), HOW, tried(matrix))
    assert found["headline"]["cost_ratio_strong"] == pytest.approx(0.125)
    assert found["aims"]["cost_ratio_strong"]["met"] is False


def test_pictures_are_drawn(matrix: Matrix, tmp_path: Path) -> None:
    for path in plots.draw_all(matrix, made(matrix), tried(matrix), tmp_path):
        assert path.name.startswith("evaluation-")
        assert path.read_bytes().startswith(b"\x89PNG")


def test_strong_is_held_against_ours_at_equal_latency(matrix: Matrix) -> None:
    outcomes = {cell: told(cell) for cell in matrix.all()}
    for usd_, haste in enumerate(matrix.hastes, 10):
        slow = {"p50": 1.0, "p95": 100.0 - 30 * (haste == shipped_haste()), "p99": 100.0}
        outcomes[matrix.hasty(haste)] |= {"usd": float(usd_), "latency": slow}
    found = frontier.as_json(matrix, Outcomes(outcomes), tried(matrix))
    ours = 10.0 + matrix.hastes.index(shipped_haste())
    assert found["strong_no_slower_over_ours"] == pytest.approx(30.0 / ours, abs=1e-4)
    assert found["strong_untuned_over_ours"]["median"] == pytest.approx(2.0**1.015, abs=1e-3)
    page = frontier.section(matrix, Outcomes(outcomes), tried(matrix))
    assert "| 12.00 | 1.20 | idle_s 60 |" in page
    outcomes[matrix.hasty(shipped_haste())]["latency"]["p95"] = 1.0
    assert "No setting of `strong`" in frontier.section(matrix, Outcomes(outcomes), tried(matrix))


def test_parts_that_do_not_pay_are_told(matrix: Matrix) -> None:
    outcomes = {cell: told(cell) for cell in matrix.all()}
    assert useless(matrix, Outcomes(outcomes)) == []
    for cell in matrix.ablation("locality"):
        outcomes[cell] |= {"usd": 5.0}
    (idle,) = useless(matrix, Outcomes(outcomes))
    assert (idle.part, idle.measure, idle.without) == ("locality", "cost, rented", 0.5)


def test_interruptions_are_judged(matrix: Matrix) -> None:
    outcomes = {cell: told(cell) for cell in matrix.all()}
    for cell in matrix.preempted(15, OURS):
        outcomes[cell] |= {"busy_gpu_s": 125.0, "failed_runs": 2}
    missed = {one.name: one.reached for one in verdicts(matrix, Outcomes(outcomes)) if not one.met}
    assert missed == {"interrupted_15_gpu_seconds": 0.25, "interrupted_15_lost": 2}


def test_what_cannot_be_is_found(matrix: Matrix) -> None:
    quick.check(matrix, made(matrix))
    with pytest.raises(AssertionError, match="below the oracle"):
        quick.check(matrix, made(matrix, bound={"usd": 1e9, "joules": 0.0}))
    quick.check(matrix, made(matrix, unsettled=1, bound={"usd": 1e9, "joules": 0.0}))
    with pytest.raises(AssertionError, match="doubled"):
        quick.check(matrix, made(matrix, doubled=1))


def test_ratios_are_of_equal_seeds(matrix: Matrix) -> None:
    outcomes = made(matrix)
    one = outcomes.each(matrix.headline("strong"))
    assert ratio(usd, one, one) == Spread(1.0, 1.0, 1.0, 2)
    with pytest.raises(AssertionError, match="seeds"):
        ratio(p95, one, list(reversed(one)))


def test_every_cell_can_be_made() -> None:
    """All scenarios, policies, changes and knobs exist."""
    matrix = Matrix((1,), (1,))
    for cell in matrix.all():
        scenario = load_scenario(cell.scenario)
        knobs = tuple((name if "." in name else f"knobs.{name}", v) for name, v in cell.knobs)
        changed(scenario, cell.changes + knobs)
        entry_of(cell)
    assert {cell.scenario for cell in matrix.all()} <= set(shipped())
    assert set(ELASTIC + FIXED) <= set(names())
    assert len({sweep.name for sweep in SWEEPS}) == 6
    assert {"dedup", "batching", "prefix", "locality", "cost", "energy", "learning"} <= set(
        ABLATIONS
    )


def test_a_path_that_is_not_there_is_an_error() -> None:
    scenario = load_scenario("headline")
    with pytest.raises(ValueError, match="extra"):
        changed(scenario, (("runz", 3),))
    with pytest.raises(ValueError, match="no 'markets'"):
        changed(scenario, (("markets.price", ("spot",)),))
    assert changed(scenario, (("market.available", 3),)).market != scenario.market


def test_the_settings_of_a_baseline_are_the_cheapest_and_of_those_the_quickest() -> None:
    cells = [Cell("headline", "strong", 1, settings=(("idle_s", n),)) for n in range(3)]
    results = [(cells[0], 5.0, 100.0), (cells[1], 3.0, 900.0), (cells[2], 3.0, 190.0)]
    assert tuning.best(results) == (("idle_s", 2),)


def test_every_policy_that_rents_has_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def outcomes(cells: list[Cell], _: Path) -> Outcomes:
        return Outcomes({cell: told(cell) for cell in cells})

    monkeypatch.setattr(tuning, "run_all", outcomes)
    settings, found = tuning.tuned(Path(), ())
    own = {OURS, "isolated"}
    assert {f"headline {policy}" for policy in ELASTIC if policy not in own} <= set(settings)
    assert settings["headline best-fit-batched"][-1][0] == "size_share"
    assert settings["headline locality"] == settings["headline round-robin"]
    assert sum(name == "headline strong" for name, *_ in found) == 18


def test_only_what_is_new_is_simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, other = Cell("small", "fifo", 1), Cell("small", "fifo", 2)
    (tmp_path / f"{cell.digest()}.json").write_text(json.dumps(told(cell)))
    assert run_all([cell], tmp_path).of(cell)["usd"] == told(cell)["usd"]
    assert cell.digest() != other.digest()
    monkeypatch.setattr("bench.evaluation.cells.code_digest", lambda: "other code")
    assert running._kept(cell, tmp_path) is None


def test_a_simulation_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="small isolated seed 1 failed"):
        run_all([Cell("small", "isolated", 1)], tmp_path)


def test_an_unknown_policy_is_an_error() -> None:
    with pytest.raises(SpecError):
        entry_of(Cell("small", "nobody", 1))
