"""Which of a run's ranges a process draws, where several draw one run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from ddt_accel.errors import ConfigError
from ddt_accel.locks import Say, nothing

_TOLD = "Where other processes draw the same run, say --shard I/N."


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Every `count`-th range, from number `index` on; what said so is `told_by`."""

    index: int
    count: int
    told_by: str = "--shard"

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, ranges: Iterable[range]) -> Iterator[range]:
        """Its part of all ranges of a run, whichever of them are drawn already.

        >>> list(Shard(index=1, count=3).of([range(0, 2), range(2, 4), range(4, 6), range(6, 8), range(8, 9)]))
        [range(2, 4), range(8, 9)]
        """
        return islice(ranges, self.index, None, self.count)


def parse_shard(text: str) -> Shard:
    """Of "I/N"; raises ConfigError for what is no shard.

    >>> parse_shard("1/4")
    Shard(index=1, count=4, told_by='--shard')
    """
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    index, count = map(int, found.groups()) if found else (0, 0)
    if index >= count:
        last = f"0/{count} to {count - 1}/{count}" if count else "0/4 to 3/4, for instance"
        raise ConfigError(f"--shard is {text!r}; give I/N, from {last}.")
    return Shard(index=index, count=count)


def shard_of(environment: Mapping[str, str], say: Say = nothing) -> Shard | None:
    """What torchrun and Slurm's arrays have set, where they started this process as one of several.

    Where every task of an array runs torchrun, each process of each task is one. What is set by halves counts as not
    set, and is said. Raises ConfigError where an array leaves out numbers, so that nobody can tell how its tasks share
    the work.
    """
    array, process = _array(environment, say), _process(environment, say)
    if array is None or process is None:
        return array or process
    return Shard(
        index=array.index * process.count + process.index,
        count=array.count * process.count,
        told_by=f"{array.told_by} and {process.told_by}",
    )


def _process(environment: Mapping[str, str], say: Say) -> Shard | None:
    """The number of a process that torchrun started."""
    found = _numbers(environment, ("RANK", "WORLD_SIZE"), say)
    if found is None or found[1] == 1:
        return None
    rank, size = found
    if rank >= size:
        say(f"RANK is {rank} and WORLD_SIZE {size}, which no launcher sets, and both are ignored. {_TOLD}")
        return None
    return Shard(index=rank, count=size, told_by="RANK and WORLD_SIZE")


def _array(environment: Mapping[str, str], say: Say) -> Shard | None:
    """The number of a task in a Slurm array, which may begin anywhere and count in steps."""
    prefix = "SLURM_ARRAY_TASK_"
    found = _numbers(environment, tuple(prefix + name for name in ("ID", "COUNT", "MIN", "MAX")), say)
    if found is None or found[1] == 1:
        return None
    task, count, least, most = found
    step = _number(environment, prefix + "STEP") or 1
    if (most - least) // step + 1 != count or (task - least) % step:
        raise ConfigError(
            f"This is task {task} of a Slurm array of {count} tasks from {least} to {most}, which leaves out numbers; "
            "say with --shard I/N which part each task draws."
        )
    return Shard(index=(task - least) // step, count=count, told_by="SLURM_ARRAY_TASK_ID")


def _numbers(environment: Mapping[str, str], names: tuple[str, ...], say: Say) -> list[int] | None:
    """All of these; None where one is missing, which is said if another is there."""
    found = [_number(environment, name) for name in names]
    if None not in found:
        return [number for number in found if number is not None]
    if any(number is not None for number in found):
        there = ", ".join(
            f"{name} is {number}" for name, number in zip(names, found, strict=True) if number is not None
        )
        missing = " and ".join(name for name, number in zip(names, found, strict=True) if number is None)
        say(f"{there}, but {missing} no number, and all are ignored. {_TOLD}")
    return None


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else None
