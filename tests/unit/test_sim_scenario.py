"""Scenario files: what is shipped is sound, and what is wrong is told with its line."""

from pathlib import Path

import pytest

from flowmesh.base.errors import SpecError
from flowmesh.sim.market import Market, Rented
from flowmesh.sim.profiles import points
from flowmesh.sim.scenario import load_scenario, shipped
from flowmesh.sim.tenants import planned
from flowmesh.sim.workflows import templates

SOUND = """\
mix: {chat-8b: 1}
fleet:
  - {kind: H100, count: 2}
"""


def load(tmp_path: Path, text: str) -> list[str]:
    """Problems of a scenario, as a user reads them."""
    file = tmp_path / "s.yaml"
    file.write_text(text)
    try:
        scenario = load_scenario(file)
        planned(scenario, 1)
        Market(scenario)
    except SpecError as error:
        return [str(one).replace(str(file), "s.yaml") for one in error.problems]
    return []


@pytest.mark.parametrize("name", shipped())
def test_shipped_scenarios_can_be_planned(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name and scenario.about
    if scenario.rows < 0.1 and not scenario.templates:
        assert planned(scenario, 1).submissions
    Market(scenario)


def test_the_shipped_scenarios_are_those_that_the_docs_name() -> None:
    text = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
    assert [name for name in shipped() if f"`{name}`" not in text] == []
    assert [name for name in templates() if f"`{name}`" not in text] == []


def test_a_sound_scenario_is_named_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(SOUND)
    assert load_scenario(file).name == "mine"


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (SOUND, []),
        ("mix: {}\nfleet: [{kind: L4}]\n", ["s.yaml:1:1: mix: must hold at least 1 of them"]),
        (SOUND + "runz: 3\n", ["s.yaml:4:1: runz: unknown key 'runz'"]),
        (SOUND + "overlap: 1.5\n", ["s.yaml:4:1: overlap: must be at most 1"]),
        (SOUND + "runs: '3'\n", ["s.yaml:4:1: runs: expected a whole number"]),
        ("mix: {chat-8b: 1}\n", ["s.yaml:1:1: there is neither `fleet` nor `market`"]),
        (
            "mix: {chatt-8b: 1}\nfleet: [{kind: L4}]\n",
            ["s.yaml:1:7: mix.chatt-8b: there is no template 'chatt-8b'; did you mean 'chat-8b'"],
        ),
        (
            SOUND + "runz: 3\ntenants: [{name: a, mix: {b: 1}}]\n"
            "given: [{tenant: a, template: c}]\n",
            [
                "s.yaml:4:1: runz: unknown key 'runz'",
                "s.yaml:5:27: tenants.0.mix.b: there is no template 'b'",
                "s.yaml:6:21: given.0.template: there is no template 'c'",
            ],
        ),
        ("- 1\n", ["s.yaml:1:1: a scenario is a mapping"]),
        (SOUND + "files: {arrivals: nowhere.csv}\n", ["nowhere.csv: there is no such file"]),
        (SOUND + "market: {kinds: [X9]}\n", ["there is no kind of machine 'X9'"]),
        (SOUND + "market: {kinds: [T4]}\n", ["the market offers nothing"]),
        (
            SOUND + "templates: {t: {steps: [{name: a, after: [b]}]}}\n",
            ["s.yaml:4:13: templates.t: step 'a' comes after 'b'"],
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    tmp_path: Path, text: str, problems: list[str]
) -> None:
    told = load(tmp_path, text)
    assert len(told) == len(problems)
    assert all(one.startswith(want) for one, want in zip(told, problems, strict=True))


def test_a_users_prices_are_all_there_is(tmp_path: Path) -> None:
    prices = tmp_path / "prices.csv"
    prices.write_text("gpu,on_demand,spot\nH100,2.5,1.0\nL4,,0.2\n")
    scenario = load_scenario("headline", prices=str(prices))
    market = Market(scenario)
    offers = {str(one.id): one.usd_per_hour for one in market.listed()}
    assert offers["H100/on_demand/home"] == 2.5 and offers["4xH100/on_demand/home"] == 10.0
    assert not [name for name in offers if name.startswith(("A100", "L4"))]
    assert market.source == "traces"
    prices.write_text("gpu,on_demand\nH100,cheap\n")
    with pytest.raises(SpecError, match=r"prices.csv:2: bad price"):
        Market(scenario)


def test_a_users_arrivals_are_played_at_the_scenarios_pace(tmp_path: Path) -> None:
    arrivals = tmp_path / "arrivals.csv"
    arrivals.write_text("seconds\n" + "".join(f"{n * n}\n" for n in range(30)))
    scenario = load_scenario("small", arrivals=str(arrivals))
    times = [one.at_ms / 1000 for one in planned(scenario, 1).submissions]
    assert len(times) == 30 and times[-1] == scenario.duration_s
    assert times[10] == pytest.approx(100 / 29**2 * scenario.duration_s, abs=0.001)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"seconds\n1\nnan\n", "f.csv:3: 'nan' is no time"),
        (b"1\n-2\n", "f.csv:2: '-2' is no time"),
        (b"1\ninf\n", "f.csv:2: 'inf' is no time"),
        (b"1\n3\n2\n", "f.csv:3: 2 is before the arrival above it, 3"),
        (b"1\n2\n\xff\xfe\n", "f.csv:3: is no text in UTF-8"),
        (b"1\n\x00\n", "f.csv:2: is no text: there is a zero byte"),
    ],
)
def test_wrong_arrivals_are_told_with_their_line(tmp_path: Path, data: bytes, problem: str) -> None:
    (tmp_path / "f.csv").write_bytes(data)
    with pytest.raises(SpecError) as caught:
        planned(load_scenario("small", arrivals=str(tmp_path / "f.csv")), 1)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"gpu,on_demand\nL4,0.2\nH100,-2.5\n", "f.csv:3: bad price: '-2.5' is no price"),
        (b"gpu,on_demand\nH100,nan\n", "f.csv:2: bad price: 'nan' is no price"),
        (b"gpu,on_demand\nH100,\x89PNG\n", "f.csv:2: is no text in UTF-8"),
    ],
)
def test_wrong_prices_are_told_with_their_line(tmp_path: Path, data: bytes, problem: str) -> None:
    (tmp_path / "f.csv").write_bytes(data)
    with pytest.raises(SpecError) as caught:
        Market(load_scenario("headline", prices=str(tmp_path / "f.csv")))
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"model,num_tokens\n\xff", "f.csv:2: is no text in UTF-8"),
        (b"layer_parameters,ms,tensor_parallel,num_tokens,gpu\n1,x,1,1,L4\n", "f.csv:2: bad meas"),
    ],
)
def test_wrong_profiles_are_told_with_their_line(tmp_path: Path, data: bytes, problem: str) -> None:
    (tmp_path / "f.csv").write_bytes(data)
    with pytest.raises(SpecError) as caught:
        points(tmp_path / "f.csv")
    assert problem in str(caught.value)


def test_rented_time_is_paid_by_begun_spans() -> None:
    scenario = load_scenario("headline")
    assert scenario.market is not None
    hourly = scenario.market.model_copy(update={"billing_s": 3600.0})
    market = Market(scenario.model_copy(update={"market": hourly}))
    offer = next(iter(market.listed()))
    rented = Rented("i1", offer, market.machines[offer.id], 0)  # type: ignore[arg-type]
    assert rented.usd(1) == rented.usd(3_600_000) == pytest.approx(offer.usd_per_hour)
    assert rented.usd(3_600_001) == pytest.approx(2 * offer.usd_per_hour)
    rented.failed = True
    assert rented.usd(3_600_001) == 0


def test_what_is_taken_from_the_market_is_gone_until_it_comes_back() -> None:
    scenario = load_scenario("headline")
    assert scenario.market is not None
    few = scenario.market.model_copy(update={"available": 1})
    market = Market(scenario.model_copy(update={"market": few}))
    offer = market.listed()[0].id
    assert market.take(offer) and not market.take(offer)
    assert offer not in [one.id for one in market.listed()]
    market.give_back(offer)
    assert market.listed()[0].id == offer
