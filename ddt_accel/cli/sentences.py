"""What the library says of a mistake, as it is said on the command line: in options alone, with commands to copy."""

from __future__ import annotations

import re
from pathlib import Path

from ddt_accel.cli.console import given
from ddt_accel.cli.options import DEFAULT_WORKSPACE

# "(weights='raw' in Python)" and "(in Python config=, …)" are for those who call the library.
_IN_PYTHON = re.compile(r" \((?:in Python [^()]*|[^()]* in Python)\)")
_IN_A_WORKSPACE = re.compile(
    r"`(ddt-accel (?:calibrate|solve|plan|fit|export|sample|bench|optimize|demo|status)\b[^`]*)`"
)


def counted(count: int, thing: str) -> str:
    """As many of a thing.

    >>> counted(1, "encoder run"), counted(9, "encoder run")
    ('1 encoder run', '9 encoder runs')
    """
    return f"{count} {thing}{'' if count == 1 else 's'}"


def spoken(sentence: str, workspace: Path | None) -> str:
    """The sentence for who typed a command in that workspace, which the commands that it names repeat.

    >>> spoken("There is none; make one with `ddt-accel export`.", Path("my run"))
    "There is none; make one with `ddt-accel export -w 'my run'`."
    """
    sentence = _IN_PYTHON.sub("", sentence)
    if workspace is None or workspace == DEFAULT_WORKSPACE:
        return sentence

    def placed(found: re.Match[str]) -> str:
        command = found[1]
        return f"`{command}`" if re.search(r" (-w|--workspace)\b", command) else f"`{command}{given('-w', workspace)}`"

    return _IN_A_WORKSPACE.sub(placed, sentence)
