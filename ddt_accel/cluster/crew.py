"""Workers, and units of work that are handed out to them one by one."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ddt_accel import __version__
from ddt_accel.cluster.instance import Site, crew_size, instance, resources
from ddt_accel.cluster.worker import Done, Failed, Job, Opened, Worker
from ddt_accel.errors import WorkerError
from ddt_accel.locks import Say

MOST_BACK = 3  # times that a unit is given back by workers that died with it
_OTHERWISE = "Without Ray, `ddt-accel sample --shard I/N` shares a run among processes."
_WAIT = 30.0  # seconds without news after which it is said what is waited for


@dataclass(kw_only=True)
class Member:
    """One worker, as this process knows it."""

    number: int
    actor: Any
    place: str = "not ready"
    process: int = 0
    since: float = 0.0  # when it became ready

    def __str__(self) -> str:
        return f"Worker {self.number} ({self.place})"


class Crew:
    """Workers for one job, in a Ray instance that lasts as long as they are needed.

    `words(unit)` is what a unit is called in messages.
    """

    def __init__(self, ray: Any, site: Site, say: Say, words: Callable[[Any], str]) -> None:
        self._ray, self._site, self._say, self._words = ray, site, say, words
        self.size, self.cores = crew_size(ray, site)
        self._worker = ray.remote(Worker).options(**resources(site, self.cores))
        self.members: list[Member] = []

    def first(self, job: Job) -> Any:
        """What the first worker tells when it is ready; the others begin with the work, and find compiled what it has
        compiled. Raises what it raised."""
        last = ""
        for _ in range(1 + MOST_BACK):
            member = self._hired(len(self.members))
            outcome = self._outcome(self._awaited({self._asked(member, job): (member, None)}))
            if isinstance(outcome, Opened):
                self._ready(member, outcome)
                return outcome.told
            self._dismiss(member)
            if isinstance(outcome, Failed):
                last = outcome.text
                if outcome.error is not None:
                    raise outcome.error
        raise WorkerError(f"No worker could begin {self._site.words}: {last}")

    def work(
        self, job: Job, units: Iterator[Any], most: int, misfit: Callable[[Any], str | None]
    ) -> Iterator[tuple[Member, Any, Any]]:
        """Has all `units` done, at `most` so many; yields who did it, the unit and its result as they come.

        A worker that dies is replaced, and gives its unit back, `MOST_BACK` times at most. One that tells what is a
        `misfit`, which is said, does nothing. Raises WorkerError for a unit that cannot be done, and where no worker is
        left.
        """
        turns = _Turns(units)
        idle, pending = list(self.members), dict[Any, tuple[Member, Any]]()
        for number in range(len(self.members), min(self.size, most)):
            member = self._hired(number)
            pending[self._asked(member, job)] = (member, None)
        try:
            yield from self._worked(job, turns, idle, pending, misfit)
        finally:  # those who were still beginning have nothing left to do
            for member, _ in pending.values():
                self._dismiss(member)

    def _worked(
        self,
        job: Job,
        turns: _Turns,
        idle: list[Member],
        pending: dict[Any, tuple[Member, Any]],
        misfit: Callable[[Any], str | None],
    ) -> Iterator[tuple[Member, Any, Any]]:
        last, deaths = "", Counter[int]()
        while True:
            while idle and (unit := turns.next()) is not None:
                member = idle.pop()
                pending[member.actor.do.remote(unit)] = (member, unit)
            if turns.over:
                return
            if not pending:
                raise WorkerError(f"No worker is left {self._site.words}: {last} What is finished is kept.")
            done = self._awaited(pending)
            member, unit = pending.pop(done)
            outcome = self._outcome(done)
            if isinstance(outcome, Opened) and (said := misfit(outcome.told)) is not None:
                outcome = Failed(text=said, error=WorkerError(said))
            if isinstance(outcome, Opened):
                self._ready(member, outcome)
                idle.append(member)
            elif isinstance(outcome, Done):
                idle.append(member)
                turns.done(unit)
                if (following := turns.next()) is not None:  # before whoever takes the result does something with it
                    pending[idle.pop().actor.do.remote(following)] = (member, following)
                yield member, unit, outcome.result
            else:
                last = outcome.text
                self._dismiss(member)
                if unit is not None:
                    self._back(turns, member, unit, outcome)
                else:
                    deaths[member.number] += 1
                    if outcome.error is not None or deaths[member.number] > MOST_BACK:
                        self._say(f"Worker {member.number} cannot begin; the others go on without it: {outcome.text}")
                        continue
                successor = self._hired(member.number)
                pending[self._asked(successor, job)] = (successor, None)

    def _back(self, turns: _Turns, member: Member, unit: Any, failed: Failed) -> None:
        what = self._words(unit)
        if failed.error is not None:
            raise WorkerError(f"{what.capitalize()} failed on {member.place}: {failed.text}") from None
        if not turns.back(unit):
            raise WorkerError(
                f"{what.capitalize()} failed {1 + MOST_BACK} times, the last time on {member.place}: {failed.text} "
                "What is finished is kept; the same command goes on from there."
            )
        self._say(f"{member} is gone, and another takes {what}: {failed.text}")

    def _hired(self, number: int) -> Member:
        return Member(number=number, actor=self._worker.remote())

    def _asked(self, member: Member, job: Job) -> Any:
        return member.actor.open.remote(job, self.cores)

    def _ready(self, member: Member, opened: Opened) -> None:
        member.place, member.process, member.since = opened.place, opened.process, time.monotonic()
        self.members.append(member)

    def _dismiss(self, member: Member) -> None:
        self.members = [one for one in self.members if one is not member]
        with contextlib.suppress(Exception):  # it may have gone already
            self._ray.kill(member.actor)

    def _awaited(self, pending: dict[Any, tuple[Member, Any]]) -> Any:
        """The next answer; says once what is waited for where nothing is being worked on. Raises WorkerError where
        Ray itself is gone: it would be waited for without an end."""
        told, here = False, self._ray.get_runtime_context().get_node_id()
        while not (done := self._ray.wait(list(pending), num_returns=1, timeout=_WAIT)[0]):
            if not any(node["Alive"] for node in self._ray.nodes() if node["NodeID"] == here):
                raise WorkerError(
                    "Ray itself has ended on this machine, as a process does that the system kills for memory. What is "
                    "finished is kept; the same command goes on from there."
                )
            if not told and all(unit is None for _, unit in pending.values()):
                more = "s" * (len(pending) > 1)
                self._say(f"Waiting for {len(pending)} worker{more} to begin {self._site.words} ...")
                told = True
        return done[0]

    def _outcome(self, answer: Any) -> Opened | Done | Failed:
        try:
            outcome: Opened | Done | Failed = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            return self._death(error)
        if isinstance(outcome, Opened) and outcome.version != __version__:
            said = f"ddt-accel {outcome.version} is installed on {outcome.place}, {__version__} here; install the same."
            return Failed(text=said, error=WorkerError(said))
        return outcome

    def _death(self, error: Exception) -> Failed:
        """Of a worker that could not answer."""
        said = str(error)
        if "No module named 'ddt_accel" in said:
            text = "ddt-accel is not installed there, or in another version; install the same as here, with its extras."
            return Failed(text=text, error=WorkerError(text))
        if isinstance(error, self._ray.exceptions.OutOfMemoryError):
            return Failed(text="its machine was out of memory.")
        if isinstance(error, self._ray.exceptions.RayActorError):
            return Failed(text="its process died, as one does that the system kills for memory, or with its machine.")
        return Failed(text=f"{type(error).__name__}: {said.strip().splitlines()[-1] if said.strip() else 'no reason'}.")


class _Turns:
    """Units that wait, those that are at work, and how often each came back."""

    def __init__(self, units: Iterator[Any]) -> None:
        self._units, self._waiting = units, list[Any]()
        self._working, self._times = set[Any](), Counter[Any]()
        self._exhausted = False

    @property
    def over(self) -> bool:
        return self._exhausted and not self._waiting and not self._working

    def next(self) -> Any | None:
        unit = self._waiting.pop() if self._waiting else next(self._units, None)
        self._exhausted |= unit is None
        if unit is not None:
            self._working.add(unit)
        return unit

    def done(self, unit: Any) -> None:
        self._working.remove(unit)

    def back(self, unit: Any) -> bool:
        """Whether it may be tried again."""
        self._working.remove(unit)
        self._waiting.append(unit)
        self._times[unit] += 1
        return self._times[unit] <= MOST_BACK


@contextmanager
def crew(site: Site, say: Say, words: Callable[[Any], str]) -> Iterator[Crew]:
    """Workers at a site, who are gone when the block ends."""
    with instance(site, otherwise=_OTHERWISE) as ray:
        yield Crew(ray, site, say, words)
