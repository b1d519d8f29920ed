"""What was found where pictures were looked for, and what was left out, for the lines that say so."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

_NAMES = 12  # more than these are folded


@dataclass(kw_only=True)
class Account:
    """Filled while pictures are read.

    `left_out` counts by reason, and `suffixes` has what the files of a reason are called; `shapes` counts (width,
    height) of the upright pictures; `notes` are what else there is to say.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    suffixes: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    shapes: Counter[tuple[int, int]] = field(default_factory=Counter)
    transparent: int = 0
    grey: bool = True
    split: str | None = None
    notes: list[str] = field(default_factory=list)

    def leave_out(self, reason: str, suffix: str | None = None) -> None:
        self.left_out[reason] += 1
        if suffix is not None:
            self.suffixes[reason].add(suffix.lower() or "no suffix")

    @property
    def left_out_text(self) -> str:
        """Such as "3 hidden, 1 in a format that cannot be read (.heic)"; empty where nothing was left out."""
        return ", ".join(
            f"{count:,} {reason}" + (f" ({folded(sorted(self.suffixes[reason]))})" if self.suffixes[reason] else "")
            for reason, count in self.left_out.items()
        )

    def lines(self, class_names: Sequence[str], size: int) -> list[str]:
        """What was read, what was left out, and what was done to the pictures."""
        text = f"{_counted(self.shapes.total(), 'picture')} in {_counted(len(class_names), 'class', 'classes')}"
        text += f" ({folded(class_names)})" + (f" of the split {self.split}" if self.split else "")
        lines = [
            text + (f"; left out: {self.left_out_text}" if self.left_out else ""),
            f"{self._sizes(size)}; {'grey, trained as colour' if self.grey else 'in colour'}",
        ]
        if self.transparent:
            lines.append(f"{_counted(self.transparent, 'picture')} with transparency, laid on white")
        return lines + self.notes

    def _sizes(self, size: int) -> str:
        wanted = f"{size} × {size}"
        shapes = sorted(self.shapes, key=lambda shape: (min(shape), shape))
        cropped = ", cut to squares" if any(width != height for width, height in shapes) else ""
        if len(shapes) > 1:
            smallest, largest = (" × ".join(map(str, shape)) for shape in (shapes[0], shapes[-1]))
            return f"from {smallest} to {largest} pixels{cropped}, resized to {wanted}"
        side = min(shapes[0])
        change = f", {'enlarged' if side < size else 'reduced'} to {wanted}" if side != size else ""
        return f"{shapes[0][0]} × {shapes[0][1]} pixels{cropped}{change}"


def folded(names: Sequence[str]) -> str:
    """Names in a line: all of a few, of many the first and the last."""
    if len(names) <= _NAMES:
        return ", ".join(names)
    return f"{', '.join(names[: _NAMES - 2])}, … {names[-1]}"


def _counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
