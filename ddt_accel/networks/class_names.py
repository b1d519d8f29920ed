"""What classes are called: by the network itself, or by the data set that all published networks were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ddt_accel.errors import ConfigError, listed

# The 1000 classes of ILSVRC 2012 in the order of their WordNet numbers, which is that of published labels; each line
# has the words that WordNet 3.0 gives the class.
IMAGENET = Path(__file__).parent / "imagenet.txt"


def names_of(num_classes: int, own: Sequence[str] | None) -> tuple[str, ...] | None:
    """A network's own names; else those of ImageNet where there are 1000 classes; else None."""
    if own is not None:
        return tuple(own)
    return tuple(IMAGENET.read_text().splitlines()) if num_classes == 1000 else None


def numbers_by_name(names: Sequence[str]) -> dict[str, int]:
    """Class numbers by every word for them, `tench` as well as `tench, Tinca tinca`.

    A word that is one class's whole name means that class; of others for several classes the first is meant.
    """
    backwards = list(reversed(list(enumerate(names))))
    words = {word.strip(): number for number, name in backwards for word in name.split(",")}
    return words | {name: number for number, name in backwards}


def number_of(label: str | int, num_classes: int, names: Sequence[str] | None) -> int:
    """The class that a label means: a number, or a name in any case. Raises ConfigError for what is neither."""
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < num_classes:
        return label
    if isinstance(label, str):
        known = {word.casefold(): number for word, number in numbers_by_name(names or ()).items()}
        if label.strip().casefold() in known:
            return known[label.strip().casefold()]
    named = f", or a name such as {listed([name.partition(',')[0] for name in names])}" if names else ""
    raise ConfigError(f"There is no class {label!r}; give a number from 0 to {num_classes - 1}{named}.")
