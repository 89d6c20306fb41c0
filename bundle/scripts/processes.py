"""What the processes of a distributed training say to each other."""

from __future__ import annotations

from typing import Any

import ignite.distributed as idist

__all__ = ["gather"]


def gather(value: Any) -> list[Any]:
    """A value of every process, by rank; of one process alone, a list of one."""
    if idist.get_world_size() == 1:
        return [value]
    # in a tuple: ignite takes tensors, numbers and texts apart, and gathers anything else as it is
    return [part for (part,) in idist.all_gather((value,))]
