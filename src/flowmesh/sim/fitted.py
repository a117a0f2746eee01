"""Generators fitted to the statistics of published traces, for where the traces are not at hand.

`docs/data.md` says where each trace is had, and how far each generator is from it;
`tests/unit/test_sim_fitted.py` holds them to the files where `$FLOWMESH_DATA` has them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Knots:
    """A distribution by quantiles of its logarithm, with straight lines between them."""

    shares: tuple[float, ...]
    values: tuple[float, ...]

    def draw(self, rng: np.random.Generator, count: int) -> Floats:
        logs = np.log(np.asarray(self.values))
        return np.asarray(np.exp(np.interp(rng.random(count), self.shares, logs)))


#: Azure LLM inference trace 2023, conversation (Patel et al., ISCA'24; CC BY 4.0): 19,366
#: requests. Two humps, so quantiles and no lognormal.
AZURE_SHARES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
AZURE_PROMPT = Knots(AZURE_SHARES, (2, 60, 207, 396, 1020, 1189, 2734, 4142, 14050))
AZURE_OUTPUT = Knots(AZURE_SHARES, (7, 16, 54, 85, 129, 395, 424, 601, 1000))
#: Coefficient of variation of its gaps between requests.
AZURE_CV = 1.09

#: ServeGen (Alibaba; Apache-2.0), 116 tenants of two models, windows of 10 minutes: the
#: burstiness (CV of gaps) of a tenant, and how unlike the tenants' rates are (sigma of ln).
SERVEGEN_CV = Knots((0.0, 0.1, 0.5, 0.9, 1.0), (0.8, 0.95, 1.25, 4.5, 8.0))
SERVEGEN_RATE_SIGMA = 1.27

#: Mooncake (FAST'25; Apache-2.0), conversations: blocks of 512 tokens; the first is common to
#: all requests, and a share of requests goes on with an earlier one.
MOONCAKE_BLOCK = 512
MOONCAKE_CONTINUES = 0.36
MOONCAKE_INPUT_BLOCKS = Knots(
    (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0), (1, 2.5, 5, 11, 24, 46, 115, 240)
)
MOONCAKE_HITS = 0.366

#: Bamboo (Thorpe et al., NSDI'23; MIT), g4dn spot machines: 74 preemptions in 10.7 h of 12.6
#: machines in the mean: 0.545 an hour of each; lifetimes lognormal; 1.54 go at one time.
BAMBOO_PER_MACHINE_HOUR = 0.545
BAMBOO_LIFE_MEDIAN_S, BAMBOO_LIFE_SIGMA = 3660.0, 1.22
BAMBOO_TOGETHER = 1.54

#: Gaps between jobs of the Philly trace as Gavel plays it (MIT): they come in bursts.
GAVEL_CV = 6.8

#: Acme (Hu et al., NSDI'24; CC BY 4.0), GPU jobs of a cluster for LLM development (Seren):
#: seconds that they run, median and mean; and what becomes of them.
ACME_RUN_MEDIAN_S, ACME_RUN_MEAN_S = 122.0, 1414.0
ACME_FAILED, ACME_CANCELLED = 0.429, 0.075


def renewal(rng: np.random.Generator, count: int, duration_s: float, cv: float) -> Floats:
    """`count` times within `duration_s`, in order, with gamma gaps of coefficient `cv`."""
    gaps = rng.gamma(1 / cv**2, cv**2, count + 1)
    times = np.cumsum(gaps)
    return np.asarray(times[:-1] / max(times[-1], 1e-9) * duration_s)


def burstiness(rng: np.random.Generator, tenants: int) -> Floats:
    """CV of the gaps of each tenant."""
    return SERVEGEN_CV.draw(rng, tenants)


def rates(rng: np.random.Generator, tenants: int, sigma: float = SERVEGEN_RATE_SIGMA) -> Floats:
    """Shares of the tenants in all requests; they sum to 1."""
    drawn = np.exp(rng.normal(0, sigma, tenants))
    return np.asarray(drawn / drawn.sum())


def lognormal(
    rng: np.random.Generator, count: int, median: float, sigma: float, limit: int
) -> Ints:
    """Whole numbers from 1 to `limit`; 0 where that is 0."""
    drawn = median * np.exp(rng.normal(0, sigma, count)) if sigma else np.full(count, median)
    return np.clip(np.rint(drawn), 1, limit).astype(np.int64)


def azure_lengths(rng: np.random.Generator, count: int) -> tuple[Ints, Ints]:
    """Prompt and output tokens of chat requests."""
    prompt = AZURE_PROMPT.draw(rng, count).astype(np.int64)
    return prompt, AZURE_OUTPUT.draw(rng, count).astype(np.int64)


def conversations(rng: np.random.Generator, count: int) -> list[tuple[int, int, int]]:
    """Requests as (conversation, blocks of its prompt, blocks that it has of an earlier one).

    Every one has the first block in common with all others.
    """
    blocks = np.maximum(1, MOONCAKE_INPUT_BLOCKS.draw(rng, count).astype(np.int64))
    continues = rng.random(count) < MOONCAKE_CONTINUES
    picks = rng.random(count)
    made: list[tuple[int, int, int]] = []
    open_ones: list[tuple[int, int]] = []
    for number in range(count):
        if continues[number] and open_ones:
            at = int(picks[number] * len(open_ones))
            name, before = open_ones[at]
            grown = before + max(1, int(blocks[number]) // 2)
            open_ones[at] = (name, grown)
            made.append((name, grown, before))
        else:
            size = int(blocks[number])
            open_ones.append((number, size))
            made.append((number, size, min(1, size) if number else 0))
        if len(open_ones) > 2000:
            open_ones.pop(0)
    return made


def lifetimes_s(rng: np.random.Generator, count: int, per_hour: float) -> Floats:
    """Of spot machines that are taken away `per_hour` each, in the mean."""
    return np.asarray(rng.exponential(3600 / per_hour, count))


def shares(values: Sequence[float] | Floats) -> Floats:
    """Weights, made to sum to 1."""
    array = np.asarray(values, dtype=np.float64)
    return np.asarray(array / array.sum())
