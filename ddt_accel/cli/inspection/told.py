"""What `inspect` has to say of a file or folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Told:
    """`facts` are for programs; `words`, where there are any, say the same to people."""

    facts: dict[str, Any]
    words: dict[str, Any] | None = None

    def text(self) -> str:
        """A line for each thing, its name in front."""
        shown = {key: _short(value) for key, value in (self.words or self.facts).items()}
        width = max(map(len, shown))
        return "\n".join(f"{key:>{width}}  {value}" for key, value in shown.items())


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 400 else text[:397] + "..."
