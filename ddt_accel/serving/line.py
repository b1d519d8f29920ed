"""Images that wait for their turn, and the batches that are made of them.

Ray Serve's own `serve.batch` closes a batch a waiting time after its first image, also while another is being drawn, so
that a busy network gets many small ones. Here a batch stays open until the network is free for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(kw_only=True, eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    future: asyncio.Future[Result]
    since: float = field(default_factory=time.monotonic)


class Line(Generic[Item, Result]):
    """Items wait by their key; `work(key, items)`, in a thread of its own, does up to `batch_size` of a key at a time.

    A batch begins when it is whole, or when its first item has waited for `wait` seconds, whichever comes first, and
    nothing else is at work. Keys take turns by who waits longest. What `work` raises is raised to those whose items it
    was given, and to nobody else.
    """

    def __init__(self, work: Callable[[str, list[Item]], Sequence[Result]], *, batch_size: int, wait: float) -> None:
        self._work, self.batch_size, self.wait = work, batch_size, wait
        self._waiting: dict[str, list[_Waiting[Item, Result]]] = {}
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="line")
        self._worker: asyncio.Task[None] | None = None

    async def results(self, key: str, items: Sequence[Item]) -> list[Result]:
        """What becomes of the items of one caller, who need not be in one batch. A caller who is cancelled takes those
        with him that have not begun."""
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._go_on())
        loop = asyncio.get_running_loop()
        mine = [_Waiting[Item, Result](item=item, future=loop.create_future()) for item in items]
        self._waiting.setdefault(key, []).extend(mine)
        self._arrived.set()
        try:
            done = await asyncio.gather(*(one.future for one in mine), return_exceptions=True)
        finally:
            for one in mine:
                one.future.cancel()
        results: list[Result] = []
        for result in done:
            if isinstance(result, BaseException):
                raise result
            results.append(result)
        return results

    async def _go_on(self) -> None:
        while True:
            key, batch = await self._batch()
            loop = asyncio.get_running_loop()
            try:
                results = await loop.run_in_executor(self._thread, self._work, key, [one.item for one in batch])
            except Exception as error:
                for one in batch:
                    if not one.future.done():
                        one.future.set_exception(error)
            else:
                for one, result in zip(batch, results, strict=True):
                    if not one.future.done():
                        one.future.set_result(result)

    async def _batch(self) -> tuple[str, list[_Waiting[Item, Result]]]:
        """The next batch, as soon as there is one to begin with."""
        while True:
            self._arrived.clear()
            self._waiting = {
                key: left for key, all_ in self._waiting.items() if (left := [x for x in all_ if not x.future.done()])
            }
            by_age = sorted(self._waiting, key=lambda key: self._waiting[key][0].since)
            whole = [key for key in by_age if len(self._waiting[key]) >= self.batch_size]
            due = self._waiting[by_age[0]][0].since + self.wait - time.monotonic() if by_age else None
            if due is not None and due <= 0:
                chosen = by_age[0]
            elif whole:
                chosen = whole[0]
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._arrived.wait(), due)
                continue
            queue = self._waiting[chosen]
            batch, self._waiting[chosen] = queue[: self.batch_size], queue[self.batch_size :]
            return chosen, batch
