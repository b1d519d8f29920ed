"""Every file is written and read here.

Writing is atomic: first under a temporary name beside its place, then renamed, so that no half-written file ever
carries a final name and a failed write leaves the earlier file as it was. Reading checks the format, its version and a
SHA-256 over the content before anything is believed. Two containers serve all artefacts: JSON documents and, where
there are arrays, safetensors files whose header carries such a document.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from ddt_accel.errors import ArtifactError

Array = NDArray[Any]
Document = dict[str, Any]

TEMPORARY = ".ddt-accel-part-"  # begins the name of what has no name yet


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all; an earlier file survives any failure.

    A link is followed. Raises ArtifactError where the system refuses (disk full, no permission, a folder in the way) or
    the place is taken by something that is no file.
    """
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise unwritable(path, error) from error


@contextlib.contextmanager
def replacing(path: Path, *, temporary: str | None = None) -> Iterator[BinaryIO]:
    """A new file, which takes the place of `path` where the block ends without an error, and goes where it does not.

    Until then it has a name that nobody else has, or the `temporary` one: what a killed process has left under that is
    overwritten, and nobody else may be writing it. Asks for nothing but to create, to rename and to remove: many file
    systems have no permissions to change, no links and no locks. Raises OSError.
    """
    target = _target(path)
    place = _temporary(target.parent) if temporary is None else target.parent / f"{TEMPORARY}{temporary}"
    try:
        with open(place, "xb" if temporary is None else "wb") as file:  # with permissions that the user's files have
            yield file
            file.flush()
            _synchronise(file)
        rename_over(place, target)
    except BaseException:
        with contextlib.suppress(OSError):
            place.unlink(missing_ok=True)
        raise


def check_writable(path: Path) -> None:
    """Raises ArtifactError now where `write_atomic(path, …)` could not even begin, before work is done for it."""
    try:
        temporary = _temporary(_target(path).parent)
        with open(temporary, "xb"):
            pass
        temporary.unlink()
    except OSError as error:
        raise unwritable(path, error) from None


def _target(path: Path) -> Path:
    """The file that `path` leads to, its folder made."""
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(target).st_mode):
            raise FileExistsError(errno.EEXIST, "it is no ordinary file")
    return target


def _temporary(folder: Path) -> Path:
    return folder / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}"


def _synchronise(file: BinaryIO) -> None:
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise  # the others say that it was not written; these, that the file system cannot tell


def rename_over(source: Path, target: Path) -> None:
    """Renames a file in the place of another, also where the file system renames, but not over what is there."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.EPERM, errno.EACCES) or not target.exists():
            raise
        aside = _temporary(target.parent)
        os.rename(target, aside)
        try:
            os.rename(source, target)
        except OSError:
            os.rename(aside, target)
            raise
        aside.unlink()


def unwritable(path: Path, error: OSError) -> ArtifactError:
    """What to raise where `path` could not be written: the cause, and what helps against it."""
    cause, advice = _WHY.get(error.errno or 0, (error.strerror or str(error), "choose another place"))
    if error.errno in (errno.ENOTDIR, errno.EEXIST) and (blocking := _no_folder(path)) is not None:
        cause, advice = f"{blocking} is no folder", "choose another place"
    return ArtifactError(f"{path} could not be written: {cause}; {advice}. Nothing that was there before has changed.")


_NO_PERMISSION = ("you have no permission to write there", "change it, or choose another place")
_WHY = {
    errno.ENOSPC: ("the disk is full", "free space, or choose another place"),
    errno.EDQUOT: ("your disk quota is used up", "free space, or choose another place"),
    errno.EFBIG: ("files of this size are not allowed there", "choose another place, or raise `ulimit -f`"),
    errno.EROFS: ("the file system is read-only", "choose another place"),
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.ENOENT: ("its folder is missing and cannot be made", "choose another place"),
    errno.ELOOP: ("its links lead in a circle", "choose another place"),
    errno.EIO: ("the disk reports an error", "choose another place"),
}


def _no_folder(path: Path) -> Path | None:
    """What stands where a folder of `path` should be."""
    return next((one for one in path.parents if os.path.lexists(one) and not one.is_dir()), None)


def write_json(path: Path, format_name: str, version: int, content: Document) -> None:
    """Writes a JSON document with its format, version and checksum."""
    document = {"format": format_name, "version": version, **content, "checksum": checksum(content)}
    write_atomic(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path, format_name: str, *versions: int) -> Document:
    """Reads what `write_json` wrote, in one of some versions.

    A document without a checksum is accepted, so that one can be written or edited by hand; a wrong checksum is not.
    """
    try:
        document = _parsed(_read(path))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a {format_name}: it is damaged or not JSON ({error}).") from None
    content = _opened(path, document, format_name, *versions)
    stated = content.pop("checksum", None)
    if stated is not None and stated != checksum(content):
        raise ArtifactError(
            f"{path} was changed after it was written: its checksum does not fit. Make it anew, or, if you edited it "
            'on purpose, remove its line "checksum".'
        )
    return content


def format_of(path: Path) -> str | None:
    """The format that a JSON document says it has."""
    try:
        document = _parsed(_read(path))
    except (ValueError, RecursionError):
        return None
    return document.get("format") if isinstance(document, dict) else None


def write_arrays(path: Path, format_name: str, version: int, content: Document, arrays: Mapping[str, Array]) -> None:
    """Writes named arrays and a document in one safetensors file."""
    document = {"format": format_name, "version": version, **content, "checksum": checksum(content, arrays)}
    # safetensors takes bytes as they lie in memory.
    in_order = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    write_atomic(path, safetensors.numpy.save(in_order, {"document": json.dumps(document, allow_nan=False)}))


def read_arrays(path: Path, format_name: str, version: int) -> tuple[Document, dict[str, Array]]:
    """Reads what `write_arrays` wrote; every bit of document and arrays is covered by the checksum."""
    data = _read(path)
    try:
        arrays = safetensors.numpy.load(data)
        header_length = int.from_bytes(data[:8], "little")
        document = _parsed(json.loads(data[8 : 8 + header_length])["__metadata__"]["document"])
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a {format_name}: it is damaged or of another kind ({error}).") from None
    content = _opened(path, document, format_name, version)
    if content.pop("checksum", None) != checksum(content, arrays):
        raise ArtifactError(f"{path} is damaged: its checksum does not fit. Make it anew.")
    return content, arrays


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror or error}).") from None
    return digest.hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror or error}).") from None


def _parsed(data: bytes | str) -> Any:
    """JSON without the NaN, the infinities and the endless integers that Python lets pass."""

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"it contains {text[:40]}")
        return value

    def whole(text: str) -> int:
        number(text)
        return int(text)

    return json.loads(data, parse_constant=number, parse_float=number, parse_int=whole)


def _opened(path: Path, document: object, format_name: str, *versions: int) -> Document:
    """The content of a document whose envelope has been checked."""
    if not isinstance(document, dict) or document.get("format") != format_name:
        found = document.get("format", "no format name") if isinstance(document, dict) else type(document).__name__
        raise ArtifactError(f"{path} is not a {format_name} (it says: {str(found)[:80]}).")
    if document.get("version") not in versions:
        raise ArtifactError(
            f"{path} is a {format_name} of version {document.get('version')}; this ddt-accel reads version "
            f"{' and '.join(map(str, versions))}. Make it anew, or install the ddt-accel that wrote it."
        )
    return {key: value for key, value in document.items() if key not in ("format", "version")}


def checksum(content: Document, arrays: Mapping[str, Array] | None = None) -> str:
    """The SHA-256 of a document's meaning (not of its layout) and of arrays with their names."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode())
    for name, array in sorted((arrays or {}).items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)  # in place: it may fill half of the memory
    return digest.hexdigest()
