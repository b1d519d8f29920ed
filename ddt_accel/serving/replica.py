"""What runs in each replica's process: one network, its line of waiting images, and pictures as PNG. Knows nothing of
Ray."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from ddt_accel.errors import DDTAccelError
from ddt_accel.report.pictures import png
from ddt_accel.serving.answers import Drawn, Failed, Preview
from ddt_accel.serving.line import Line
from ddt_accel.serving.offer import Offer, Order
from ddt_accel.serving.painter import Image, Painted, Painter, Picture

# Called once in each replica, with the number of its cores.
Opening = Callable[[int], tuple[Painter, Offer]]
_GRACE = 60.0  # seconds in which a replica that could not begin tells why, before it counts as broken


class Replica:
    """Nothing is raised: what goes wrong is told, for it goes to another process."""

    def __init__(self, opening: Opening, cores: int, wait: float) -> None:
        self._began = time.monotonic()
        self._failed: Failed | None = None
        try:
            painter, self._offer = opening(cores)
        except DDTAccelError as error:
            self._failed = Failed(text=str(error), elsewhere=True, error=type(error)(str(error)))
            return
        self._known = {one.name: one.sha256 for one in self._offer.schedules}
        self._line: Line[Image, Painted] = Line(painter.paint, batch_size=painter.batch_size, wait=wait)

    def check_health(self) -> None:
        """Raises where this replica is of no use; called by Ray Serve, which then replaces it."""
        if self._failed is not None and time.monotonic() - self._began > _GRACE:
            raise RuntimeError(self._failed.text)

    async def offer(self) -> Offer | Failed:
        return self._failed or self._offer

    async def draw(self, order: Order) -> Drawn | Failed:
        return await self._drawn(order, None)

    async def stream(self, order: Order) -> AsyncIterator[Preview | Drawn | Failed]:
        """Previews as they come, then what `draw` returns."""
        loop, waiting = asyncio.get_running_loop(), asyncio.Queue[Preview | Drawn | Failed]()

        def show(index: int, number: int, picture: Picture) -> None:
            preview = Preview(index=index, number=number, png=png(picture))
            loop.call_soon_threadsafe(waiting.put_nowait, preview)

        async def whole() -> None:
            waiting.put_nowait(await self._drawn(order, show))

        task = asyncio.create_task(whole())
        try:
            while True:
                event = await waiting.get()
                yield event
                if not isinstance(event, Preview):
                    return
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _drawn(self, order: Order, show: Callable[[int, int, Picture], None] | None) -> Drawn | Failed:
        if self._failed is not None:
            return self._failed
        if self._known.get(order.schedule) != order.schedule_sha256:
            return Failed(text=f"The schedule {order.schedule} has changed since the server began; restart it.")
        images = [
            Image(
                label=order.label,
                seed=seed,
                previews=0 if show is None else order.previews,
                on_preview=None if show is None else _of(show, index),
            )
            for index, seed in enumerate(order.seeds)
        ]
        try:
            painted = await self._line.results(order.schedule, images)
            pngs = await asyncio.to_thread(lambda: tuple(png(one.picture) for one in painted))
        except DDTAccelError as error:
            return Failed(text=str(error))
        except Exception as error:
            line = str(error).partition("\n")[0]
            return Failed(text=f"{type(error).__name__}: {line}" if line else type(error).__name__)
        every = {id(one.batch): one.batch for one in painted}
        return Drawn(
            pngs=pngs,
            batches=tuple(one.batch for one in painted if one.first),
            drawing=sum(batch.seconds for batch in every.values()),
        )


def _of(show: Callable[[int, int, Picture], None], index: int) -> Callable[[int, Picture], None]:
    return lambda number, picture: show(index, number, picture)
