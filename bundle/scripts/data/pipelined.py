from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["pipelined"]

Item = TypeVar("Item")


def pipelined(
    items: Iterable[Item],
    before: Callable[[Item], Any],
    work: Callable[[Any], Any],
    behind: Callable[[Item, Any], None],
    ahead: int = 2,
) -> Iterator[tuple[Item, Exception | None]]:
    """
    Three steps of each item, the first and the last beside the second one of others, each in a thread of its own.

    Args:
        items: are asked for shortly before they are needed, in their order.
        before: gives what ``work`` needs.
        work: done by the caller's thread.
        behind: gets the item and what ``work`` gave.
        ahead: number of items that the first step may be ahead, and the last one behind.

    Yields:
        each item when it is done, in their order unless steps failed, and what went wrong with it.
    """
    items, begun, ending = iter(items), deque(), deque()
    with ThreadPoolExecutor(1, "before") as first, ThreadPoolExecutor(1, "behind") as last:
        while True:
            for item in items:
                begun.append((item, first.submit(before, item)))
                if len(begun) > ahead:
                    break
            if not begun:
                break
            item, future = begun.popleft()
            try:
                made = work(future.result())
            except Exception as error:  # noqa: BLE001 # the caller's to judge
                yield item, error
                continue
            ending.append((item, last.submit(behind, item, made)))
            if len(ending) > ahead:
                item, future = ending.popleft()
                yield item, future.exception()
        for item, future in ending:
            yield item, future.exception()
