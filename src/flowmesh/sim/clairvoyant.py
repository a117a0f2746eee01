"""The oracle's bound of a whole scenario: its distinct rows, and the machines that there were."""

import numpy as np

from flowmesh.sim import data, oracle
from flowmesh.sim.devices import LOAD_BYTES_PER_S
from flowmesh.sim.engines import Truth
from flowmesh.sim.market import Market, fetch_bytes_per_s, machine_of
from flowmesh.sim.oracle import Bound, Offered, Work
from flowmesh.sim.profiles import efficiencies
from flowmesh.sim.scenario import Scenario
from flowmesh.sim.tenants import Plan, planned
from flowmesh.sim.workflows import MAX_BATCH, Content


def bound_of(scenario: Scenario, seed: int) -> Bound:
    """What no policy can undercut on this scenario from this seed."""
    named = scenario.files.profiles
    profiles = data.given(named) if named else data.find(data.VIDUR)
    truth = Truth(efficiencies(profiles), scenario.devices)
    return oracle.bound(works(planned(scenario, seed)), offered(scenario), truth)


def works(plan: Plan) -> list[Work]:
    """The distinct rows of each batch key."""
    found: dict[str, dict[str, Content]] = {}
    for submission in plan.submissions:
        for step in submission.steps:
            content = plan.library.content(step.fingerprint)
            found.setdefault(content.kind.key, {})[step.fingerprint] = content
    return [_work(list(contents.values())) for contents in found.values()]


def _work(contents: list[Content]) -> Work:
    engine = contents[0].kind.engine
    numbers: dict[str, int] = {}
    prefix: list[int] = []
    tokens: list[float] = []
    work: list[float] = []
    for one in contents:
        names = one.prefixes or [""] * len(one)
        prefix += [numbers.setdefault(name, len(numbers)) if name else -1 for name in names]
        tokens += one.prefix_tokens or [0.0] * len(one)
        work += [one.step.work if engine.kind == "tool" else 0.0] * len(one)
    return Work(
        engine=engine,
        prompt=np.concatenate([one.prompt for one in contents]).astype(np.float64),
        output=np.concatenate([one.output for one in contents]).astype(np.float64),
        prefix=np.asarray(prefix),
        prefix_tokens=np.asarray(tokens, dtype=np.float64),
        work=np.asarray(work),
        max_batch=max(one.step.max_batch or MAX_BATCH[one.step.kind] for one in contents),
        fetch_bytes=sum(tree.size_bytes for tree in contents[0].kind.demand.trees),
    )


def offered(scenario: Scenario) -> list[Offered]:
    """Every kind of machine at the least that it costs, by any kind of offer, in any place."""
    market = Market(scenario)
    found: list[Offered] = []
    for offer in market.listed():
        assert scenario.market is not None
        found.append(
            Offered(
                market.machines[offer.id],
                offer.usd_per_hour,
                offer.slots,
                startup_s=scenario.market.startup_s[0],
                load_bytes_per_s=offer.device.load_bytes_per_s or 1e9,
                fetch_bytes_per_s=offer.device.fetch_bytes_per_s,
            )
        )
    for part in scenario.fleet:
        machine = machine_of(scenario, part.kind, part.gpus)
        usd = market.fixed_usd_per_hour(part, machine)
        rate = fetch_bytes_per_s(scenario.network, part.place)
        found.append(Offered(machine, usd, part.slots, 0.0, LOAD_BYTES_PER_S, rate))
    return found
