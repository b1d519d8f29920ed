"""Replicas by Ray Serve: begun and ended, and asked in a way that outlives any of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Timer
from typing import Any
from uuid import uuid4

from pydantic import ValidationError

from ddt_accel.cluster.instance import Site, crew_size, instance, resources
from ddt_accel.errors import ConfigError, WorkerError, listed
from ddt_accel.locks import Say
from ddt_accel.serving.answers import Drawn, Failed, Preview
from ddt_accel.serving.limits import Limits
from ddt_accel.serving.offer import Offer, Order
from ddt_accel.serving.replica import Opening, Replica
from ddt_accel.serving.request import RefusedError

ATTEMPTS = 4  # replicas that are asked, one after the other, where they die of it
_PATIENCE = 600.0  # seconds until the first replica is ready
_LONG = 30.0  # seconds after which it is said what is waited for
_AGAIN = 5  # seconds in which a replica is replaced
_QUIET = {"log_level": "CRITICAL", "enable_access_log": False}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How replicas are run. `wait` is how many seconds a batch stays open for others; `autoscaling` is handed to Ray
    Serve as it is, in the place of a number of replicas."""

    site: Site
    limits: Limits
    batch_size: int
    wait: float
    autoscaling: Mapping[str, Any] = field(default_factory=dict)


class Pool:
    """All replicas as one; which of them answers is Ray Serve's choice."""

    def __init__(self, serve: Any, handle: Any, name: str) -> None:
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        self._serve, self._handle, self._name = serve, handle, name
        self._dead: tuple[type[Exception], ...] = (RayError, RayServeException)
        self.retried = 0

    async def draw(self, order: Order) -> Drawn:
        """Raises RefusedError: 503 where replicas die of it, 500 where it fails."""
        last = ""
        for _ in range(ATTEMPTS):
            response = self._handle.draw.remote(order)
            try:
                outcome = await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            except self._dead as error:
                last = _words(error)
            else:
                if isinstance(outcome, Drawn):
                    return outcome
                last = _elsewhere(outcome)
            self.retried += 1
        raise _nobody(last)

    async def stream(self, order: Order) -> AsyncGenerator[Preview | Drawn, None]:
        """Previews, then the pictures; a replica that takes over begins anew, and what was shown is not shown again."""
        seen: set[tuple[int, int]] = set()
        last = ""
        for _ in range(ATTEMPTS):
            events = self._handle.options(stream=True).stream.remote(order)
            try:
                async for event in events:
                    if isinstance(event, Failed):
                        last = _elsewhere(event)
                    elif isinstance(event, Drawn):
                        yield event
                        return
                    elif (event.index, event.number) not in seen:
                        seen.add((event.index, event.number))
                        yield event
            except self._dead as error:
                last = _words(error)
            finally:
                events.cancel()
            self.retried += 1
        raise _nobody(last)

    async def running(self) -> int:
        """How many replicas there are that can answer."""
        return await asyncio.to_thread(self._running)

    def _running(self) -> int:
        found = self._serve.status().applications.get(self._name)
        every = found.deployments.values() if found is not None else ()
        return sum(int(one.replica_states.get("RUNNING", 0)) for one in every)


def _nobody(last: str) -> RefusedError:
    said = f"{ATTEMPTS} replicas could not answer; of the last it is known: {last}"
    return RefusedError(503, said, retry_after=_AGAIN)


def _elsewhere(failed: Failed) -> str:
    """Why one replica has failed; raises RefusedError where no other would do better."""
    if not failed.elsewhere:
        raise RefusedError(500, failed.text)
    return failed.text


def _words(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0]
    return f"Its process died ({type(error).__name__}{': ' + line if line else ''})."


def check_scaling(given: Mapping[str, Any]) -> None:
    """Raises ConfigError for settings of autoscaling that Ray Serve does not take."""
    from ray.serve.config import AutoscalingConfig

    fields = list(AutoscalingConfig.model_fields)
    if unknown := sorted(set(given) - set(fields)):
        raise ConfigError(
            f"--autoscaling has {unknown[0]}, which Ray Serve does not take; it takes {listed(fields, 8)}."
        )
    try:
        AutoscalingConfig(**given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "its settings"
        raise ConfigError(f"--autoscaling is not what Ray Serve takes: {place}: {first['msg']}.") from None


@contextmanager
def pool(opening: Opening, settings: Settings, say: Say) -> Iterator[tuple[Pool, Offer, int]]:
    """Replicas that are ready, what they offer, and how many they are to be; they are gone when the block ends.

    Raises what opening the network raised, and WorkerError where no replica begins.
    """
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    logging.getLogger("ray").setLevel(logging.CRITICAL)
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    site = settings.site
    with instance(site) as ray:
        count, cores = crew_size(ray, site)
        needs = resources(site, cores)
        scaling = (
            {"autoscaling_config": dict(settings.autoscaling)} if settings.autoscaling else {"num_replicas": count}
        )
        options: dict[str, Any] = {
            **scaling,
            # All wait where batches are made of them. What Ray Serve holds back it lets go one by one, at growing
            # intervals: replicas that had more to do than they could then drew small batches.
            "max_ongoing_requests": settings.limits.queue,
            "max_queued_requests": -1,  # else those on their way to another replica would be refused, too
            "ray_actor_options": needs,
            "health_check_period_s": 2.0,
            "health_check_timeout_s": max(30.0, settings.limits.timeout),
            "graceful_shutdown_wait_loop_s": 0.2,
            "max_constructor_retry_count": 1,
        }
        name = f"ddt-accel-{uuid4().hex[:12]}"  # a cluster may have several servers
        deployment = serve.deployment(name="replica", **options)(Replica)
        serve.start(proxy_location="Disabled", logging_config=_QUIET)
        taken = "" if site.address is None else "; others may have the cores or GPUs for it"
        with _deleted(serve, site, name):
            try:
                with _told_after(_LONG, say, f"No replica is ready {site.words} yet{taken}."):
                    handle = serve.run(
                        deployment.bind(opening, cores, settings.wait), name=name, route_prefix=None,
                        logging_config=_QUIET,
                    )  # fmt: skip
                    offer = handle.offer.remote().result(timeout_s=_PATIENCE)
            except (RuntimeError, TimeoutError, RayError, RayServeException) as error:
                raise WorkerError(f"No replica could begin {site.words}: {_last_line(error)}") from None
            if isinstance(offer, Failed):
                raise offer.error or WorkerError(offer.text)
            yield Pool(serve, handle, name), offer, count


@contextmanager
def _deleted(serve: Any, site: Site, name: str) -> Iterator[None]:
    """What was begun under that name ends with the block; on this machine all of Ray does."""
    try:
        yield
    finally:
        if site.address is not None:
            with suppress(Exception):
                serve.delete(name)


@contextmanager
def _told_after(seconds: float, say: Say, sentence: str) -> Iterator[None]:
    timer = Timer(seconds, say, [sentence])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
