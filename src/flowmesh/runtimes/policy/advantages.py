"""Carries out `advantages`: how much better than expected each roll-out was."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmesh.base.nearest import nearest
from flowmesh.operators.policy import AdvantagesParams
from flowmesh.runtimes.base import Blobs, Done, Failed, FailureKind, Outcome, Work
from flowmesh.runtimes.policy.rollouts import numbers
from flowmesh.runtimes.rows import Table, TableError, read_table, store_table
from flowmesh.runtimes.tables import keys_of
from flowmesh.spec.action import Action, Artifact, Result

FloatArray = NDArray[np.float64]

#: Added to a standard deviation before it divides, as TRL's GRPO trainer does.
_GROUP_FLOOR = 1e-4
#: Added to a variance before its root divides, as TRL's PPO trainer does.
_WHITEN_FLOOR = 1e-8


def open_advantages(blobs: Blobs, inputs: Mapping[str, Any], engine: str) -> "AdvantagesEngine":
    """An `OpenEngine`."""
    return AdvantagesEngine(blobs)


class AdvantagesEngine:
    """Runs tasks one by one; it keeps nothing warm."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def run(self, batch: Sequence[Work]) -> Iterator[Outcome]:
        for work in batch:
            try:
                yield Done(work.task, self._judge(work.action))
            except TableError as error:
                yield Failed(work.task, FailureKind.INPUT, str(error))

    def _judge(self, action: Action) -> Result:
        params = AdvantagesParams.model_validate(action.params)
        bound = action.inputs["rows"]
        assert isinstance(bound, Artifact), bound
        table = read_table(self._blobs, bound)
        if params.into in table.columns:
            raise TableError(f"the rows already have a column {params.into!r}")
        found = [float(value) for value in _advantages(table, params)]
        rows = [{**row, params.into: value} for row, value in zip(table.rows, found, strict=True)]
        lines = "".join(f"{json.dumps(['rows', number])}\n" for number in range(len(rows)))
        return Result(
            outputs={"rows": store_table(self._blobs, rows, (*table.columns, params.into))},
            origins={"rows": Artifact("file", str(self._blobs.put(lines.encode())))},
        )


def _advantages(table: Table, params: AdvantagesParams) -> FloatArray:
    if params.reward not in table.columns:
        known = nearest(params.reward, table.columns)
        raise TableError(f"the roll-outs have no column {params.reward!r}{known}")
    rewards = np.array(numbers(table, params.reward), dtype=np.float64)
    if not table.rows:
        return rewards
    if params.method == "whiten":
        return whitened(rewards)
    groups = _groups(table, params.by)
    if params.method == "rloo":
        return leave_one_out(rewards, groups)
    return group_relative(rewards, groups, params.scale)


def _groups(table: Table, by: Sequence[str]) -> list[list[int]]:
    """Row numbers by group. Raises TableError for a group of one row."""
    groups: dict[bytes, list[int]] = {}
    for number, key in enumerate(keys_of(table, by)):
        groups.setdefault(key, []).append(number)
    for members in groups.values():
        if len(members) < 2:
            raise TableError(
                f"row {members[0] + 1} is alone in its group (rows with equal {', '.join(by)}),"
                " and there is nothing to compare it with; draw `samples: 2` or more for each"
                " prompt"
            )
    return list(groups.values())


def group_relative(rewards: FloatArray, groups: Sequence[Sequence[int]], scale: str) -> FloatArray:
    """Each reward less its group's mean, by a standard deviation (with n - 1) or as it is.

    Args:
        rewards: `[rows]`, any unit.
        groups: row numbers, 2 or more each.
        scale: whose deviation divides: `group`, `batch` for all rewards, or `none`.

    Returns:
        `[rows]`; a group whose rewards are all equal gives zeros: it carries no signal.

    Source: DeepSeekMath, arXiv:2402.03300; `none` is Dr. GRPO, arXiv:2503.20783.
    """
    found = np.zeros_like(rewards)
    overall = float(rewards.std(ddof=1))
    for members in groups:
        own = rewards[list(members)]
        if own.min() == own.max():
            continue  # a mean of equal numbers may differ from them in the last digit
        spread = {"group": float(own.std(ddof=1)), "batch": overall}.get(scale)
        divisor = 1.0 if spread is None else spread + _GROUP_FLOOR
        found[list(members)] = (own - own.mean()) / divisor
    return found


def leave_one_out(rewards: FloatArray, groups: Sequence[Sequence[int]]) -> FloatArray:
    """Each reward less the mean of the others in its group; `[rows]`, in the rewards' unit.

    Source: Back to Basics (RLOO), arXiv:2402.14740.
    """
    found = np.zeros_like(rewards)
    for members in groups:
        own = rewards[list(members)]
        if own.min() != own.max():
            found[list(members)] = own - (own.sum() - own) / (len(own) - 1)
    return found


def whitened(rewards: FloatArray) -> FloatArray:
    """Rewards with mean 0 and variance 1 (with n - 1) over the table; zeros if all are equal."""
    if rewards.size < 2 or rewards.min() == rewards.max():
        return np.zeros_like(rewards)
    return np.asarray((rewards - rewards.mean()) / np.sqrt(rewards.var(ddof=1) + _WHITEN_FLOOR))
