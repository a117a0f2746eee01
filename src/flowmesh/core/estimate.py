"""What is expected of a batch: seconds, tokens, joules. Reads the state, changes nothing.

Each number starts at a prior (`roofline.py`, or what an offer claims) and moves with what
batches told (`learning.py`). Where nothing is known of a batch key on one kind of device, what
it took on others corrects the prior.
"""

from dataclasses import dataclass
from math import exp, sqrt

from flowmesh.base.replacing import replace
from flowmesh.core import roofline
from flowmesh.core.fleet import Device, Offer
from flowmesh.core.lengths import expected_output, longest_output, quantile
from flowmesh.core.records import Demand
from flowmesh.core.roofline import FEATURES, Amounts, Quantity, concurrency, decode_steps, fits
from flowmesh.core.state import State

__all__ = [
    "FEATURES",
    "Amounts",
    "Coefficients",
    "Quantity",
    "coefficients",
    "concurrency",
    "counted",
    "decode_steps",
    "error_by_operator_and_kind",
    "expected_output",
    "fetch_s",
    "fit_key",
    "fits",
    "interruptions_per_hour",
    "joules",
    "load_s",
    "longest_output",
    "prior",
    "prior_sigma",
    "quantile",
    "startup_s",
    "tokens_name",
    "tokens_ratio",
]

#: Observations that a prior of seconds is worth, and hours that a claimed rate is.
PRIOR_WEIGHT = 1.0
PRIOR_HOURS = 10.0
#: Standard deviation of the logarithm of a prior: by data sheets (`bench/roofline.py` tells how
#: far they are off), where other kinds of machine have corrected it, and where nothing is known.
SHEET_SIGMA = 0.4
PACED_SIGMA = 0.5
UNKNOWN_SIGMA = 3.0
#: Batches after which a quarter of the doubt about a prior is left.
QUARTER_SEEN = 2.0


@dataclass(frozen=True, slots=True)
class Coefficients:
    """How long batches of one batch key take on one kind of device.

    Attributes:
        seconds: for each feature of `Amounts`.
        sigma: standard deviation of a batch's time, relative to it.
        seen: batches that it was learnt from.
        watts: mean power while executing.
    """

    seconds: tuple[float, ...]
    sigma: float
    seen: int
    watts: float

    def exec_s(self, amounts: Amounts) -> Quantity:
        """Seconds from the first row's start to the last one's end; arrays give an array."""
        fixed, prompt, step, output, work = self.seconds
        return (
            fixed * amounts.fixed
            + prompt * amounts.prompt_tokens
            + step * amounts.decode_steps
            + output * amounts.output_tokens
            + work * amounts.work
        )


def fit_key(batch_key: str, kind: str) -> str:
    return f"{batch_key}|{kind}"


def coefficients(
    state: State, batch_key: str, device: Device, *, learning: bool = True
) -> Coefficients:
    """Of `batch_key` on machines like `device`, for prompt tokens as they are estimated.

    `learning` off gives the prior alone.
    """
    known = counted(state, batch_key, device, learning=learning)
    if not learning or (ratio := tokens_ratio(state, batch_key)) == 1.0:
        return known
    fixed, prompt, *others = known.seconds
    return replace(known, seconds=(fixed, prompt * ratio, *others))


def counted(state: State, batch_key: str, device: Device, *, learning: bool = True) -> Coefficients:
    """The same for prompt tokens as engines count them."""
    fit = state.fits.get(fit_key(batch_key, device.kind)) if learning else None
    if fit is None:
        return prior(state, batch_key, device, learning=learning)
    demand = state.demands.get(batch_key) or Demand()
    doubt = prior_sigma(demand, device) / (1 + fit.seen / QUARTER_SEEN) ** 2
    sigma = min(1.0, sqrt(fit.variance + doubt**2))
    return Coefficients(fit.coefficients, sigma, fit.seen, fit.watts or roofline.watts(device))


def prior(state: State, batch_key: str, device: Device, *, learning: bool = True) -> Coefficients:
    """What is expected of a batch key on a kind of machine that has not run it yet."""
    demand = state.demands.get(batch_key) or Demand()
    seconds = roofline.seconds(demand, device)
    sigma = prior_sigma(demand, device)
    names = pace_names(batch_key, demand.operator, device.kind) if learning else ()
    if any(name in state.rates for name in names):
        factor = _pace(state, names)
        seconds = tuple([one * factor for one in seconds])
        sigma = min(sigma, PACED_SIGMA)
    return Coefficients(seconds, min(1.0, sigma), 0, roofline.watts(device))


def prior_sigma(demand: Demand, device: Device) -> float:
    """Standard deviation of the logarithm of what data sheets say over what it takes."""
    sheet = demand.flops_per_token > 0 and device.flops_per_s > 0
    return SHEET_SIGMA if sheet else UNKNOWN_SIGMA


def pace_names(batch_key: str, operator: str, kind: str) -> tuple[str, ...]:
    """Rates by which batches miss their priors; each is drawn towards the next."""
    key = f"pace|key|{batch_key}"
    if not operator:
        return (key,)
    return (key, f"pace|operator|{operator}|{kind}", f"pace|operator|{operator}")


def tokens_name(batch_key: str) -> str:
    return f"tokens|{batch_key}"


def tokens_ratio(state: State, batch_key: str) -> float:
    """How many prompt tokens engines read for each that was estimated; 1 if nothing is known."""
    return _pace(state, (tokens_name(batch_key),))


def load_names(demand: Demand, kind: str) -> tuple[str, ...]:
    """Where loads are kept. An engine without weights tells nothing of those with them."""
    own = f"load|{kind}|{demand.operator}"
    return (own, f"load|{kind}" if demand.weights_bytes else f"load||{demand.operator}")


def fetch_names(kind: str, place: str) -> tuple[str, ...]:
    return (f"fetch|{kind}|{place}", f"fetch|{kind}")


def load_s(state: State, demand: Demand, device: Device, *, learning: bool = True) -> float:
    """Seconds to make a cold engine warm."""
    names = load_names(demand, device.kind) if learning else ()
    return roofline.load_s(demand, device) * _pace(state, names)


def fetch_s(
    state: State, size_bytes: float, device: Device, place: str = "", *, learning: bool = True
) -> float:
    """Seconds to bring bytes from the store to the disk of a machine in `place`."""
    if not size_bytes:
        return 0.0
    names = fetch_names(device.kind, place) if learning else ()
    return roofline.fetch_s(size_bytes, device) * _pace(state, names)


def startup_s(state: State, offer: Offer, *, learning: bool = True) -> float:
    """Seconds from launch until the worker of a rented machine takes work."""
    names = (f"startup|{offer.provider}|{offer.device.kind}",) if learning else ()
    return offer.startup_s * _pace(state, names)


def interruptions_per_hour(state: State, kind: str, claimed: float, provider: str = "") -> float:
    """How often machines of a kind are taken away; of one provider, if it is given."""
    name = f"interruptions|{provider}|{kind}" if provider else f"interruptions|{kind}"
    rate = state.rates.get(name)
    if rate is None:
        return claimed
    return (claimed * PRIOR_HOURS + rate.mean * rate.weight) / (PRIOR_HOURS + rate.weight)


def _pace(state: State, names: tuple[str, ...]) -> float:
    """By what to multiply expected seconds: the first rate known, drawn towards the next."""
    mean = 0.0
    for name in reversed(names):
        rate = state.rates.get(name)
        if rate is not None:
            mean = (mean * PRIOR_WEIGHT + rate.mean * rate.weight) / (PRIOR_WEIGHT + rate.weight)
    return exp(mean)


def joules(device: Device, known: Coefficients, exec_s: Quantity, other_s: Quantity) -> Quantity:
    """Energy of a batch: `other_s`, of loading and fetching, is spent nearly idle."""
    return known.watts * exec_s + roofline.idle_w(device) * other_s


def error_by_operator_and_kind(state: State) -> dict[tuple[str, str], float]:
    """Mean absolute percentage error, as a fraction, weighted by the batches seen."""
    sums: dict[tuple[str, str], tuple[float, int]] = {}
    for key in sorted(state.fits):
        batch_key, _, kind = key.rpartition("|")
        fit = state.fits[key]
        operator = (state.demands.get(batch_key) or Demand()).operator
        error, seen = sums.get((operator, kind), (0.0, 0))
        sums[operator, kind] = (error + fit.error * fit.seen, seen + fit.seen)
    return {pair: error / max(seen, 1) for pair, (error, seen) in sums.items()}
