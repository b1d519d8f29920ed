"""What the parts of a prefix say of the weights that stand under it: averages, raw weights, an optimiser's."""

from __future__ import annotations

import re
from enum import Enum

_AVERAGE = {"ema", "emas", "swa", "shadow", "average", "averaged", "averages", "averaging", "avg", "polyak"}
_NOT = {"no", "non", "not", "without"}
_RAW = {"online", "raw", "current", "collected", "backup"}
_OPTIMISER = {"optimizer", "optimizers", "optim", "opt"}
# Averages of gradients, which have the network's names and shapes and are none of its weights.
_MOMENTS = {"grad", "grads", "gradient", "gradients", "momentum", "momenta", "sq", "var", "variance"}


class Kind(Enum):
    """What a set of weights is."""

    AVERAGE = "averaged"
    RAW = "raw"
    OPTIMISER = "optimiser's"
    UNSAID = "unnamed"


def said_by(part: str) -> Kind | None:
    """What one part of a prefix says."""
    words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", part)}
    moments = words & _MOMENTS and (words <= _MOMENTS or words & _AVERAGE)
    if moments or words & _OPTIMISER or "exp_avg" in part.lower() or part == "momentum_buffer":
        return Kind.OPTIMISER
    if words & _AVERAGE:
        return Kind.RAW if words & _NOT else Kind.AVERAGE
    return Kind.RAW if words & _RAW else None


def kind_of(prefix: tuple[str, ...]) -> Kind:
    """What a prefix says: its last part that says anything."""
    return next((kind for part in reversed(prefix) if (kind := said_by(part))), Kind.UNSAID)
