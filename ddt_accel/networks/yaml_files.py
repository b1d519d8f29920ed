"""YAML files as other tools write them: duplicates noticed, tags inert, OmegaConf's plain interpolation followed.

`${a.b}` is the value at a.b from the top, `${.b}` the one beside, `${..b}` the one a level up; several may stand in one
value, and inside each other. Resolvers, `${name:…}`, are functions, and none is called.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ddt_accel.errors import ConfigError, listed

Place = tuple[str, ...]
_INNERMOST = re.compile(r"(?<!\\)\$\{([^${}]*)\}")
_DEEPEST, _MOST = 32, 10_000


def read_document(path: Path) -> Document:
    """Raises ConfigError where the file cannot be read or is no YAML."""
    import yaml  # where it is needed: weights that say what they are load without it

    from ddt_accel.networks.yaml_loader import Loader

    try:
        content = yaml.load(path.read_bytes(), Loader)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error}).") from None
    except ConfigError as error:
        raise ConfigError(f"{path} {error}.") from None
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = f"{error.context or ''} {error.problem or ''}".strip()
        hint = " (YAML indents by spaces)" if "\\t" in problem else ""
        raise ConfigError(f"{path} is no YAML: {problem}{line}{hint}.") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{path} is no YAML ({reason}).") from None
    return Document(content)


class Document:
    """The content of a YAML file; a place in it is the keys that lead there."""

    def __init__(self, content: Any) -> None:
        self._content = content
        self._left = _MOST

    def mappings(self) -> Iterator[tuple[Place, dict[Any, Any]]]:
        """All mappings, each once, from the top down."""
        found: list[tuple[Place, Any]] = [((), self._content)]
        seen = set()
        for place, value in found:
            if isinstance(value, dict | list) and id(value) not in seen:
                seen.add(id(value))
                if isinstance(value, dict):
                    yield place, value
                children = value.items() if isinstance(value, dict) else enumerate(value)
                found += [((*place, str(key)), child) for key, child in children]

    def values(self, place: Place, names: Sequence[str]) -> dict[str, Any]:
        """Values of a mapping, interpolated; raises ConfigError where that leads nowhere, in circles or to a call."""
        return {name: self._value((*place, name), ()) for name in names}

    def outline(self) -> str:
        """What stands at the top, for messages."""
        if not isinstance(self._content, dict):
            return f"only {type(self._content).__name__} at its top" if self._content is not None else "nothing"
        keys = [
            f"{key} ({listed([str(inner) for inner in value])})" if value and isinstance(value, dict) else str(key)
            for key, value in self._content.items()
        ]
        return listed(keys)

    def _value(self, place: Place, following: tuple[Place, ...]) -> Any:
        self._left -= 1
        if place in following or len(following) > _DEEPEST or self._left < 0:
            raise ConfigError(f"Its interpolations lead in a circle: {' → '.join(map('.'.join, (*following, place)))}.")
        value = self._content
        for depth, key in enumerate(place):
            value = self._inside(value, key)
            if isinstance(value, str) and "${" in value:
                value = self._interpolated(value, place[: depth + 1], (*following, place))
        if isinstance(value, list):
            return [self._value((*place, str(index)), following) for index in range(len(value))]
        if value == "???":
            raise ConfigError(f"Its {'.'.join(place)} is ???, which has to be filled in.")
        return value

    def _inside(self, value: Any, key: str) -> Any:
        if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            return value[int(key)]
        if isinstance(value, dict):
            for name, inner in value.items():
                if str(name) == key:
                    return inner
        raise LookupError(key)

    def _interpolated(self, text: str, place: Place, following: tuple[Place, ...]) -> Any:
        while found := _INNERMOST.search(text):
            reference = found[1].strip()
            if ":" in reference:
                raise ConfigError(f"Its {'.'.join(place)} calls {found[0]}, and nothing is executed; write the value.")
            up = len(reference) - len(reference.lstrip("."))
            target = (*(place[: max(len(place) - up, 0)] if up else ()), *re.findall(r"[^.\[\]]+", reference))
            try:
                value = self._value(target, following)
            except LookupError:
                raise ConfigError(f"Its {'.'.join(place)} is {found[0]}, and there is no {'.'.join(target)}.") from None
            if found[0] == text:
                return value
            text = text[: found.start()] + str(value) + text[found.end() :]
            if len(text) > _MOST:
                raise ConfigError(f"Its {'.'.join(place)} grows without end.")
        return text
