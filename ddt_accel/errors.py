"""Everything that ddt-accel raises for a cause that the user can remove.

Each message says what was given, what was expected and what to do; the command line prints it and exits with code 2.

- DDTAccelError
    - ConfigError: an impossible setting (budget, step count, label, option)
        - MemoryShortageError: a batch that does not fit into memory
    - ArtifactError: a file of ours that is damaged, foreign or belongs to something else
        - MismatchError: two intact artefacts that do not belong together
    - CheckpointError: weights that cannot be used
    - NumericsError: NaN or infinity where numbers were expected
    - DependencyError: an optional package is missing
    - ParityError: an exported network does not compute what the original computes
    - BusyError: another process is at work where this one wants to be alone
    - WorkerError: a process on another device, which worked for this one, could not go on
"""

from collections.abc import Sequence


class DDTAccelError(Exception):
    """The root of the tree."""


class ConfigError(DDTAccelError, ValueError):
    """An impossible setting."""


class MemoryShortageError(ConfigError):
    """A batch that does not fit into memory."""


class ArtifactError(DDTAccelError):
    """A file that is damaged, foreign or of an unknown version."""


class MismatchError(ArtifactError):
    """Two intact artefacts that do not belong together."""


class CheckpointError(DDTAccelError):
    """Weights that cannot be used."""


class NumericsError(DDTAccelError):
    """NaN or infinity where numbers were expected."""


class DependencyError(DDTAccelError, ImportError):
    """An optional package is missing; the message names the extra that brings it."""


class ParityError(DDTAccelError):
    """An exported network does not compute what the original computes."""


class BusyError(DDTAccelError):
    """Another process is at work where this one wants to be alone."""


class WorkerError(DDTAccelError):
    """A process that worked for this one could not go on; the message names what it worked on."""


def listed(names: Sequence[str], most: int = 4) -> str:
    """Names for a message: a few of them, none longer than a line, and how many more there are."""
    shown = ", ".join(name if len(name) <= 100 else f"{name[:60]}…{name[-39:]}" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
