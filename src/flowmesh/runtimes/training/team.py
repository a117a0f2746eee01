"""The processes of one training: this one alone, or one for each device under `accelerate launch`.

All of them make the same steps, so what depends on a clock, a disk or a request is decided by
the first and told to the others. Alone, everything here answers at once.
"""

import os

from torch import distributed


def rank() -> int:
    """This process's number; the first, 0, speaks for all."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    return rank() == 0


def lost_another(error: Exception) -> bool:
    """Whether it says no more than that another process has gone: what ended that one counts."""
    return isinstance(error, distributed.DistError) or "gloo/transport" in str(error)


def agreed(wish: int) -> int:
    """The wish of the first process, in all of them. Each has to ask."""
    told = [wish]
    if distributed.is_initialized():
        distributed.broadcast_object_list(told, src=0)
    return told[0]


def all_well(well: bool) -> bool:
    """Whether all processes are. Each has to ask; none goes on before the last has."""
    if not distributed.is_initialized():
        return well
    told: list[bool] = [False] * distributed.get_world_size()
    distributed.all_gather_object(told, well)
    return all(told)
