"""Output where not every character can be written: ASCII that means the same."""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
import unicodedata

ERRORS = "ddt-accel-plain"
_PLAIN = str.maketrans({
    "●": "#", "·": ".", "→": "->", "←": "<-", "×": "x", "…": "...", "±": "+-", "−": "-", "–": "-", "—": "-",
    "≥": ">=", "≤": "<=", "≈": "~", "∞": "inf", "½": "1/2",
})  # fmt: skip


def in_ascii(text: str) -> str:
    """The same in ASCII: signs spelled out, powers after ^, and letters of names as escapes, never another name.

    >>> in_ascii("●··● 2³² → café")
    '#..# 2^32 -> caf\\\\xe9'
    """
    powers = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda run: "^" + unicodedata.normalize("NFKC", run[0]), text)
    return powers.translate(_PLAIN).encode("ascii", "backslashreplace").decode("ascii")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return in_ascii(error.object[error.start : error.end]), error.end


def adapt() -> None:
    """Lets stdout and stderr write whatever they are given, each in its encoding.

    Python writes UTF-8 for LC_ALL=C unless it is told otherwise; who sets that expects ASCII.
    """
    codecs.register_error(ERRORS, _replaced)
    told = {"PYTHONIOENCODING", "PYTHONUTF8"} & set(os.environ)
    ascii_only = os.environ.get("LC_ALL") in ("C", "POSIX") and not told
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="ascii" if ascii_only else None, errors=ERRORS)
