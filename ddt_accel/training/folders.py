"""Where pictures lie: folders on a disk or in a zip, and how they are laid out as classes and splits.

As torchvision's ImageFolder has it, a folder under the root is a class, and every picture below it, however deep,
belongs to it. Where the folders under the root are called as splits are, the classes lie one level deeper.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import zipfile
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from ddt_accel.errors import ConfigError
from ddt_accel.training.account import Account, folded
from ddt_accel.training.picture import readable_suffixes

# What Hugging Face's datasets takes for a split, by folder name.
SPLITS = (("train", "training"), ("validation", "valid", "val", "dev"), ("test", "testing", "eval", "evaluation"))
# Kept by systems and programs, seen by nobody: beside all that begins with a dot.
_HIDDEN = {"__macosx", "@eadir", "thumbs.db", "desktop.ini"}
_UNREADABLE = {
    ".ai", ".arw", ".avif", ".cr2", ".cr3", ".dng", ".emf", ".eps", ".exr", ".hdr", ".heic", ".heif", ".jxl", ".jxr",
    ".nef", ".orf", ".pdf", ".raf", ".raw", ".rw2", ".svg", ".svgz", ".webp", ".wmf", ".xcf",
}  # fmt: skip

HIDDEN, OUTSIDE = "hidden", "outside the class folders"
FORMAT, OTHER = "in a format that cannot be read", "of another kind"
BESIDE, TWICE = "in folders beside those of the split", "of a name that another has"
BROKEN, AGAIN = "behind broken links", "behind links to folders already read"

Read = Callable[[], bytes]


class Folder(Protocol):
    """A folder: which one it really is, whether a link leads there, and what it contains."""

    @property
    def identity(self) -> Hashable: ...

    @property
    def linked(self) -> bool: ...

    def listing(self, account: Account) -> tuple[Mapping[str, Folder], Mapping[str, Read]]:
        """Its folders and pictures by name; what is neither is left out."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A picture, its class and its path below the class's folder, and how to read it."""

    class_name: str
    parts: tuple[str, ...]
    read: Read


class DiskFolder:
    """A folder on a disk; links are followed."""

    def __init__(self, path: Path, *, linked: bool = False) -> None:
        status = path.stat()
        self.path, self.linked, self.identity = path, linked, (status.st_dev, status.st_ino)

    def listing(self, account: Account) -> tuple[Mapping[str, Folder], Mapping[str, Read]]:
        folders: dict[str, Folder] = {}
        pictures: dict[str, Read] = {}
        for entry in sorted(os.scandir(self.path), key=lambda entry: entry.name):
            path = self.path / entry.name
            if _hidden(entry.name):
                account.leave_out(HIDDEN)
            elif not path.exists():
                account.leave_out(BROKEN)
            elif path.is_dir():
                folders[entry.name] = DiskFolder(path, linked=entry.is_symlink())
            elif path.is_file() and _readable(entry.name, account):
                pictures[entry.name] = path.read_bytes
        return folders, pictures


@dataclass
class ZipFolder:
    """A folder in a zip, whose directory is one flat list."""

    folders: dict[str, ZipFolder] = field(default_factory=dict)
    files: dict[str, Read] = field(default_factory=dict)
    doubled: list[str] = field(default_factory=list)
    linked: bool = False

    @property
    def identity(self) -> Hashable:
        return id(self)

    def listing(self, account: Account) -> tuple[Mapping[str, Folder], Mapping[str, Read]]:
        folders: dict[str, Folder] = {
            name: folder for name, folder in sorted(self.folders.items()) if not _hidden(name)
        }
        files = {name: read for name, read in sorted(self.files.items()) if not _hidden(name)}
        for _ in range(len(self.folders) + len(self.files) - len(folders) - len(files)):
            account.leave_out(HIDDEN)
        for name in self.doubled:
            account.leave_out(HIDDEN if _hidden(name) else TWICE)
        return folders, {name: read for name, read in files.items() if _readable(name, account)}

    def descend(self, parts: tuple[str, ...]) -> ZipFolder:
        folder = self
        for part in parts:
            folder = folder.folders.setdefault(part, ZipFolder())
        return folder


def zip_folder(archive: zipfile.ZipFile) -> ZipFolder:
    """The root of a zip; backslashes, which some programs write, part names like slashes.

    Every member lies below the root, whatever its name: no drive, no leading slash, nothing above. Of several members
    of one name the last counts, as where they are unpacked.
    """
    root = ZipFolder()
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")
        parts = _below(name)
        if stat.S_ISLNK(info.external_attr >> 16) and not any(map(_hidden, parts)):
            raise ConfigError(f"{archive.filename} holds a link, {name}; zip what it leads to (without -y).")
        if name.endswith("/"):
            root.descend(parts)
        elif parts:
            folder = root.descend(parts[:-1])
            if parts[-1] in folder.files:
                folder.doubled.append(parts[-1])
            folder.files[parts[-1]] = functools.partial(archive.read, info)
    return root


def _below(name: str) -> tuple[str, ...]:
    parts: list[str] = []
    for part in re.sub(r"^[A-Za-z]:/", "", name).split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return tuple(parts)


def find_pictures(root: Folder, where: Path, split: str, account: Account) -> list[Found]:
    """All pictures of `split`, or of everything where there are no splits, in the order of classes and paths.

    A folder that alone encloses everything is passed through. Raises ConfigError where no layout can be seen.
    """
    seen = {root.identity}
    folders, pictures = root.listing(account)
    while len(folders) == 1 and not pictures:
        (name, inner), = folders.items()  # fmt: skip
        if _split_of(name) or name == split or inner.identity in seen:
            break
        aside = Account()
        inside, directly = inner.listing(aside)
        if directly or not inside:
            break  # a class, not an enclosing folder
        seen.add(inner.identity)
        _add(account, aside)
        folders, pictures = inside, directly
    if chosen := _chosen(folders, split, where):
        account.split = chosen
        seen.add(folders[chosen].identity)
        _leave_beside(folders, chosen, where, set(seen), account)
        folders, pictures = folders[chosen].listing(account)
    for _ in pictures:
        account.leave_out(OUTSIDE)
    found = _walk(folders, seen, account)
    if not found:
        left_out = f" (left out: {account.left_out_text})" if account.left_out else ""
        raise ConfigError(
            f"{where} has no pictures in class folders{left_out}; expected class/picture.png or "
            "split/class/picture.png in formats that Pillow reads. One folder for all will do."
        )
    if empty := sorted(set(folders) - {picture.class_name for picture in found}):
        account.notes.append(f"no pictures, so no class: {folded(empty)}")
    return found


def _chosen(folders: Mapping[str, Folder], split: str, where: Path) -> str | None:
    """The folder of `split` where the folders are splits; a class may be called like one."""
    meant = _split_of(split) or (split.lower(),)
    matching = sorted(
        (name for name in folders if name.lower() == split.lower() or _split_of(name) == meant),
        key=lambda name: (name != split, name),
    )
    all_splits = bool(folders) and all(_split_of(name) for name in folders)
    if not matching:
        if all_splits:
            raise ConfigError(f"{where} has the splits {', '.join(folders)}, not '{split}'; choose one with --split.")
        return None
    _, directly = folders[matching[0]].listing(Account())
    if not directly:
        return matching[0]
    if all_splits:
        raise ConfigError(
            f"{where} has pictures directly in {matching[0]}; expected {matching[0]}/class/picture.png. One folder for "
            "all will do."
        )
    return None


def _leave_beside(
    folders: Mapping[str, Folder], chosen: str, where: Path, seen: set[Hashable], account: Account
) -> None:
    """Counts what lies beside the splits. Raises ConfigError where that could be classes: pictures lie right there."""
    beside = {
        name: folder
        for name, folder in folders.items()
        if name != chosen and _split_of(name) in (None, _split_of(chosen))
    }
    unclear = [name for name, folder in beside.items() if _split_of(name) is None and folder.listing(Account())[1]]
    if unclear:
        raise ConfigError(
            f"{where} has the split {chosen} with folders in it, and beside it pictures in {folded(unclear)}; are "
            "these classes? Leave only splits in it (split/class/picture.png) or only classes (class/picture.png)."
        )
    for name, folder in beside.items():
        for _ in _walk({name: folder}, seen, Account()):
            account.leave_out(BESIDE, name)


def _walk(classes: Mapping[str, Folder], seen: set[Hashable], account: Account) -> list[Found]:
    """Every picture below the classes. Each real folder is read once, where it lies rather than through a link."""
    found: list[Found] = []
    here: list[tuple[str, tuple[str, ...], Folder]] = []
    there = list(here)  # what links lead to, which waits until nothing else is left
    for name, folder in classes.items():
        (there if folder.linked else here).append((name, (), folder))
    while here or there:
        name, parts, folder = here.pop() if here else there.pop(0)
        if folder.identity in seen:
            account.leave_out(AGAIN)
            continue
        seen.add(folder.identity)
        folders, pictures = folder.listing(account)
        found += [Found(class_name=name, parts=(*parts, file), read=read) for file, read in pictures.items()]
        for inner_name, inner in folders.items():
            (there if inner.linked else here).append((name, (*parts, inner_name), inner))
    return sorted(found, key=lambda picture: (picture.class_name, picture.parts))


def _split_of(name: str) -> tuple[str, ...] | None:
    plain = re.sub("[-_ ]set$", "", name.lower())
    return next((names for names in SPLITS if plain in names), None)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _HIDDEN


def _readable(name: str, account: Account) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in readable_suffixes():
        return True
    account.leave_out(FORMAT if suffix in _UNREADABLE else OTHER, suffix)
    return False


def _add(account: Account, other: Account) -> None:
    account.left_out += other.left_out
    for reason, suffixes in other.suffixes.items():
        account.suffixes[reason] |= suffixes
