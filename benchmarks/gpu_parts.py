"""The parts of `gpu.py`, one a process: `python gpu_parts.py NAME --results FILE --seconds S [--reduced]`.

A part records each figure when it has it, the most telling first, and stops by itself where its time is nearly over.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import signal
import sys
import time
from pathlib import Path

from gpu_part import Part

# Module, function and what it is given besides: a module is imported by the parts that it serves alone.
PARTS: dict[str, tuple[str, str, tuple[object, ...]]] = {
    "probe": ("gpu_probe", "probe", ()),
    "capture": ("gpu_probe", "tests", ("test_capture.py",)),
    "tests": ("gpu_probe", "tests", ("test_backends.py", "test_sampler.py", "test_replays.py")),
    "commands": ("gpu_probe", "commands", ()),
    "compile-256": ("gpu_probe", "compiling", ("xl2-256",)),
    "compile-512": ("gpu_probe", "compiling", ("xl2-512",)),
    "compile-dit-dh": ("gpu_probe", "compiling", ("dit-dh-xl-256", (0, 2))),
    "compile-pixnerd": ("gpu_probe", "compiling", ("pixnerd-xl-256", (0, 2))),
    "compile-published": ("gpu_probe", "compiling_published", ("fp32",)),
    "compile-published-bf16": ("gpu_probe", "compiling_published", ("bf16",)),
    "parts": ("gpu_pieces", "pieces", ()),
    "peers-32": ("gpu_contest", "peers", (32,)),
    "dit-dh": ("gpu_pieces", "family", ("dit-dh-xl-256",)),
    "pixnerd": ("gpu_pieces", "family", ("pixnerd-xl-256",)),
    "peers-1": ("gpu_contest", "peers", (1,)),
    "trajectories": ("gpu_contest", "trajectories", ()),
    "scaling": ("gpu_contest", "scaling", ()),
    "fit": ("gpu_contest", "fitting", ()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--published", type=Path)
    parser.add_argument("--reduced", action="store_true")
    arguments = parser.parse_args()
    if sys.platform == "linux":  # this process goes when the one that started it does, however that ends
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    ends = time.monotonic() + arguments.seconds - 1
    module, function, given = PARTS[arguments.part]
    part = Part(arguments.part, arguments.results, ends, arguments.reduced, arguments.published)
    getattr(importlib.import_module(module), function)(part, *given)


if __name__ == "__main__":
    main()
