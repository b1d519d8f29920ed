"""A run: many images, drawn in ranges, each of which is a file that is whole or not there.

Whoever draws a range needs nothing of the others, so it does not matter how often a run is stopped, nor who goes on.
Loads no PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddt_accel.artifacts import TEMPORARY, read_arrays, read_json, unwritable, write_arrays, write_json
from ddt_accel.drawing.identity import RunIdentity, differences
from ddt_accel.drawing.images import Images
from ddt_accel.errors import ArtifactError, ConfigError, MismatchError

FORMAT, VERSION = "ddt-accel run of images", 1
RANGE_FORMAT, RANGE_VERSION = "ddt-accel range of images", 1
FILE_NAME = "run.json"
RANGE = 64  # images of a range, where batches are not larger: 13 MB at 256 × 256 pixels
MANY = 100  # images that are no run yet, at most: they are done before anybody would want to go on
_RANGE_NAME = re.compile(r"\d{6,}-\d{6,}\.safetensors|\.\d{6,}-\d{6,}\.safetensors\.lock")


def range_size(batch_size: int) -> int:
    """As many images as whole batches hold, about `RANGE`: only the last range of a run has a smaller batch."""
    return batch_size * max(1, RANGE // batch_size)


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The folder of a run of `images` images, `size` a range: what is drawn already, and where the rest goes."""

    folder: Path
    identity: dict[str, Any]
    images: int
    size: int

    @classmethod
    def begun(cls, folder: Path, identity: RunIdentity, images: int, size: int) -> RunFolder:
        """The run in a folder, or a new one there.

        A run may get more images; its ranges stay as they were begun. Raises MismatchError where another run is in the
        folder, and says what differs; ArtifactError where it cannot be read or written.
        """
        here = identity.document()
        if not (folder / FILE_NAME).exists():
            new = cls(folder=folder, identity=here, images=images, size=size)
            new._save()
            return new
        there = cls.load(folder)
        if differs := differences(there.identity, here):
            raise MismatchError(
                f"{folder} holds images of another run: {'; '.join(differs)}. Give another --out, or remove the folder."
            )
        if images < there.images:
            raise MismatchError(
                f"{folder} holds a run of {there.images} images, and --images is {images}; give another --out, or "
                f"--images {there.images}."
            )
        run = cls(folder=folder, identity=here, images=images, size=there.size)
        if images > there.images:
            run._save()
        return run

    @classmethod
    def load(cls, folder: Path) -> RunFolder:
        """The run that is in a folder; raises ArtifactError where there is none that can be believed."""
        path = folder / FILE_NAME
        content = read_json(path, FORMAT, VERSION)
        try:
            run = cls(folder=folder, identity=dict(content["identity"]), images=int(content["images"]),
                      size=int(content["range_size"]))  # fmt: skip
            if run.images < 1 or run.size < 1:
                raise ValueError("it has no images")
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} makes no sense ({error}); remove {folder}.") from None
        return run

    @property
    def pictures(self) -> Path:
        """Where PNGs lie, and nothing else."""
        return self.folder / "pictures"

    def ranges(self) -> Iterator[range]:
        """All units of work, in order."""
        for first in range(0, self.images, self.size):
            yield range(first, min(self.images, first + self.size))

    def path(self, indices: range) -> Path:
        return self.folder / "ranges" / f"{indices.start:06d}-{indices.stop:06d}.safetensors"

    def present(self) -> int:
        """How many images have a file, unread."""
        return sum(len(indices) for indices in self.ranges() if self.path(indices).exists())

    def write(self, images: Images, conditions: dict[str, Any]) -> None:
        """One finished range; `conditions` say how it was drawn, for people."""
        indices = range(images.first, images.stop)
        content = {"range": [images.first, images.stop], "identity": self.identity, "conditions": conditions}
        arrays = {"images": images.rows, "labels": images.labels}
        write_arrays(self.path(indices), RANGE_FORMAT, RANGE_VERSION, content, arrays)

    def read(self, indices: range) -> Images:
        """A finished range; raises ArtifactError where it is missing, damaged, or of another run."""
        path = self.path(indices)
        content, arrays = read_arrays(path, RANGE_FORMAT, RANGE_VERSION)
        if content.get("range") != [indices.start, indices.stop] or set(arrays) != {"images", "labels"}:
            raise ArtifactError(f"{path} holds other images than its name says.")
        if differs := differences(content.get("identity") or {}, self.identity):
            raise ArtifactError(f"{path} is of another run: {'; '.join(differs)}.")
        if not len(arrays["images"]) == len(arrays["labels"]) == len(indices):
            raise ArtifactError(f"{path} holds other images than its name says.")
        return Images(first=indices.start, rows=arrays["images"], labels=arrays["labels"])

    def remove(self, indices: range) -> None:
        """What is no finished range."""
        try:
            self.path(indices).unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(self.path(indices), error) from None

    def tidy(self) -> None:
        """Removes what a killed run left half-written or locked, and the short last range of when it was smaller.

        Nobody else may be drawing in the folder.
        """
        named = {self.path(indices).name for indices in self.ranges()}
        for folder in (self.folder, self.folder / "ranges", self.pictures):
            for path in folder.iterdir() if folder.is_dir() else ():
                foreign = folder.name == "ranges" and _RANGE_NAME.fullmatch(path.name) and path.name not in named
                if path.name.startswith(TEMPORARY) or foreign:
                    try:
                        path.unlink()
                    except OSError as error:
                        raise unwritable(path, error) from None

    def _save(self) -> None:
        content = {"images": self.images, "range_size": self.size, "identity": self.identity}
        write_json(self.folder / FILE_NAME, FORMAT, VERSION, content)


def check_no_run(folder: Path) -> None:
    """Raises ConfigError where a few images would get among those of a run."""
    if (folder / FILE_NAME).exists():
        raise ConfigError(
            f"{folder} holds a run of many images, which few must not get among; give another --out, or as many "
            "--images as it has."
        )
