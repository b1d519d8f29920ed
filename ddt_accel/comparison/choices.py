"""What was chosen and measured so far, kept in a folder, so that a comparison that was interrupted goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ddt_accel.artifacts import checksum, read_json, write_json
from ddt_accel.comparison.choosing import Entry
from ddt_accel.comparison.contest import Contest, Row
from ddt_accel.errors import ArtifactError
from ddt_accel.schedule import Schedule

FORMAT, VERSION = "ddt-accel choices", 1
FILE_NAME = "choices.json"
PARTS = ("choices", "contests")


class Choices:
    """Of a comparison of this identity: of another one's nothing is taken over."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder, self._path = folder, folder / FILE_NAME
        self._known: dict[str, Any] = {"identity": identity, "choices": {}, "contests": {}}
        try:
            known = read_json(self._path, FORMAT, VERSION)
            if known.get("identity") == identity and all(isinstance(known.get(one), dict) for one in PARTS):
                self._known = known
        except ArtifactError:
            pass  # there is none, or none that is of use

    def of(self, cost: float, name: str, choose: Callable[[], Entry | None]) -> Entry | None:
        """The choice that is kept, or the one that is made now."""
        key = f"{cost!r} {name}"
        if key in self._known["choices"]:
            try:
                return self._read(self._known["choices"][key])
            except (ArtifactError, KeyError, TypeError):
                pass  # its schedule is damaged or gone
        entry = choose()
        self._known["choices"][key] = None if entry is None else self._write(cost, entry)
        write_json(self._path, FORMAT, VERSION, self._known)
        return entry

    def contest(self, cost: float, entries: Mapping[str, Entry | None], make: Callable[[], Contest]) -> Contest:
        """The contest of these entries that was measured, or is now."""
        chosen = {name: entry and checksum(entry.schedule.document()) for name, entry in entries.items()}
        key, contests = f"{cost!r} {checksum(chosen)}", self._known["contests"]
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            rows = [Row(**{**row, "entry": entries[row["entry"]]}) for row in contests[key]["rows"]]
            return Contest(**{**contests[key], "rows": rows})
        contest = make()
        contests[key] = vars(contest) | {"rows": [vars(row) | {"entry": row.entry.name} for row in contest.rows]}
        write_json(self._path, FORMAT, VERSION, self._known)
        return contest

    def _write(self, cost: float, entry: Entry) -> dict[str, Any]:
        # Of another comparison in this folder the same name may have another schedule.
        told = f"{entry.name} at {cost:.3g} {checksum(entry.schedule.document())[:8]}"
        file = f"{''.join(one if one.isalnum() or one == '.' else '-' for one in told)}.json"
        entry.schedule.save(self._folder / file)
        return {
            "name": entry.name, "source": entry.source, "settings": entry.settings, "promise": entry.promise,
            "schedule": file,
        }  # fmt: skip

    def _read(self, kept: dict[str, Any] | None) -> Entry | None:
        if kept is None:
            return None
        entry = Entry(**{**kept, "schedule": Schedule.load(self._folder / kept["schedule"])})
        if not (isinstance(entry.promise, float) and isinstance(entry.settings, str)):
            raise TypeError
        return entry
