"""What was chosen so far, kept in a folder, so that a comparison that was interrupted goes on with the next one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddt_accel.artifacts import read_json, write_json
from ddt_accel.comparison.choosing import Entry
from ddt_accel.errors import ArtifactError
from ddt_accel.schedule import Schedule

FORMAT, VERSION = "ddt-accel choices", 1
FILE_NAME = "choices.json"


class Choices:
    """Of a comparison of this identity: of another one's nothing is taken over."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder, self._path = folder, folder / FILE_NAME
        self._known: dict[str, Any] = {"identity": identity, "choices": {}}
        try:
            known = read_json(self._path, FORMAT, VERSION)
            if known.get("identity") == identity and isinstance(known.get("choices"), dict):
                self._known = {"identity": identity, "choices": known["choices"]}
        except ArtifactError:
            pass  # there is none, or none that is of use

    def of(self, cost: float, name: str, choose: Callable[[], Entry | None]) -> Entry | None:
        """The choice that is kept, or the one that is made now."""
        key = f"{cost:g} {name}"
        if key in self._known["choices"]:
            try:
                return self._read(self._known["choices"][key])
            except (ArtifactError, KeyError, TypeError):
                pass  # its schedule is damaged or gone
        entry = choose()
        self._known["choices"][key] = None if entry is None else self._write(key, entry)
        write_json(self._path, FORMAT, VERSION, self._known)
        return entry

    def _write(self, key: str, entry: Entry) -> dict[str, Any]:
        file = f"{''.join(one if one.isalnum() or one == '.' else '-' for one in key)}.json"
        entry.schedule.save(self._folder / file)
        return {
            "name": entry.name, "source": entry.source, "settings": entry.settings, "promise": entry.promise,
            "schedule": file,
        }  # fmt: skip

    def _read(self, kept: dict[str, Any] | None) -> Entry | None:
        if kept is None:
            return None
        return Entry(**{**kept, "schedule": Schedule.load(self._folder / kept["schedule"])})
