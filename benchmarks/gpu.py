"""What is to be measured on a GPU, with one command, in runs of under ten minutes, whatever goes wrong.

DDT-XL/2 with random weights, in bf16. Each part (`gpu_parts.py`) is a process group of its own with a limit of its own:
one that fails, hangs or says nothing costs no other anything. Every figure is a line of `results.jsonl` in `--out` as
soon as it is measured, what was printed is in `log.txt`, and what PyTorch compiled in `compiled-*.xz`, which the next
run starts from. Parts come in the order of what they tell a second; what no longer fits into `--minutes` is recorded as
skipped. Takes this checkout, PyTorch with CUDA, Triton, NumPy, safetensors, onnx and pytest, the part `commands` also
what the package installs; no network. The published implementation takes part where a clone of
github.com/MCG-NJU/DDT lies in the checkout, up to three folders deep; `published/` is ignored by git. `--reduced` does
the same with tiny networks on a CPU, where no part but compile-* compiles, which takes long there. `--render` prints
the tables of what came back, and writes those that the documentation has.

Usage: python benchmarks/gpu.py [--out FOLDER] [--minutes 9] [--reduced] [--parts NAMES]
       python benchmarks/gpu.py --render results.jsonl
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from record import record
from tables import render, write_tables

HERE = Path(__file__).parent
ROOT = HERE.parent
TOLD = 1 << 19  # bytes of each part's output that are kept
WAIT = 5.0  # seconds for a killed process to be gone
MARK = Path("src/models/denoiser/decoupled_improved_dit.py")


@dataclass(frozen=True, kw_only=True)
class Part:
    """`limit` and `least` are seconds: what it may take, and what it has to have to tell anything."""

    name: str
    limit: float
    least: float = 10.0
    together: bool = False  # with those beside it that are, too: compiling takes processors, not the card


PARTS = (
    Part(name="probe", limit=25),
    Part(name="capture", limit=60, together=True),
    Part(name="tests", limit=150, together=True),
    Part(name="commands", limit=150, together=True),
    Part(name="compile-256", limit=150, together=True),
    Part(name="compile-512", limit=150, together=True),
    Part(name="compile-dit-dh", limit=150, together=True),
    Part(name="compile-pixnerd", limit=150, together=True),
    Part(name="compile-published", limit=150, together=True),
    Part(name="compile-published-bf16", limit=150, together=True),
    Part(name="parts", limit=90, least=30),
    Part(name="peers-32", limit=100, least=35),
    Part(name="dit-dh", limit=60, least=30),
    Part(name="pixnerd", limit=60, least=30),
    Part(name="peers-1", limit=60, least=30),
    Part(name="trajectories", limit=60, least=30),
    Part(name="scaling", limit=60, least=30),
    Part(name="fit", limit=50, least=20),
)


def published_clone() -> Path | None:
    """Where the published implementation lies in the checkout, up to three folders deep."""
    found = (path for depth in range(4) for path in ROOT.glob("*/" * depth + str(MARK)))
    first = next(iter(found), None)
    return None if first is None else first.parents[len(MARK.parts) - 1]


def environment(part: Part, drawn: str, *, reduced: bool) -> dict[str, str]:
    """Of a part: it finds this checkout and, in folders, what others have compiled and drawn."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    compiled = os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / "ddt-accel-compiled"))
    return {
        **os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(paths), "DDT_ACCEL_DRAWN": drawn,
        "TORCHINDUCTOR_CACHE_DIR": compiled,
        **({"TORCHDYNAMO_DISABLE": "1"} if reduced and not part.name.startswith("compile") else {}),
    }  # fmt: skip


class Run:
    """The parts, one group after the other, and the deadline of them all."""

    def __init__(self, out: Path, minutes: float, command: list[str], *, reduced: bool = False) -> None:
        self.ends, self.command, self.reduced = time.monotonic() + 60 * minutes, command, reduced
        self.results, self._log = out / "results.jsonl", (out / "log.txt").open("wb")
        self._telling = threading.Lock()

    def all(self, parts: tuple[Part, ...]) -> None:
        with tempfile.TemporaryDirectory(prefix="ddt-accel-", ignore_cleanup_errors=True) as drawn, self._log:
            for group in grouped(parts):
                left = self.ends - time.monotonic() - 3
                going = []
                for part in group:
                    if left < part.least:
                        record(self.results, part.name, "ended", "skipped", reason=f"{left:.0f} s were left")
                        self._tell(f"{part.name}: skipped, {left:.0f} s were left")
                        continue
                    given = environment(part, drawn, reduced=self.reduced)
                    going.append(threading.Thread(target=self._one, args=(part, min(part.limit, left), given)))
                for thread in going:
                    thread.start()
                for thread in going:
                    thread.join()

    def _one(self, part: Part, limit: float, given: dict[str, str]) -> None:
        started = time.monotonic()
        process = subprocess.Popen(
            [*self.command, part.name, "--results", str(self.results), "--seconds", f"{limit:.1f}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, process_group=0, env=given,
        )  # fmt: skip
        assert process.stdout is not None
        reader = threading.Thread(target=self._keep, args=(part.name, process.stdout), daemon=True)
        reader.start()
        try:
            code = process.wait(limit)
            ended = "done" if code == 0 else f"failed with {code}"
        except subprocess.TimeoutExpired:
            ended = f"stopped at its limit of {limit:.0f} s"
        with contextlib.suppress(ProcessLookupError):  # and whatever it started, which may have outlived it
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may keep it: then the next come all the same
            process.wait(WAIT)
        reader.join(WAIT)
        seconds = time.monotonic() - started
        record(self.results, part.name, "ended", ended, seconds=round(seconds, 1))
        self._tell(f"{part.name}: {ended}, {seconds:.0f} s")

    def _keep(self, name: str, stream: IO[bytes]) -> None:
        kept = 0
        with stream, contextlib.suppress(ValueError):  # of a log that is closed: the part is long over
            while line := stream.readline(1 << 16):
                kept += len(line)
                if kept < TOLD:
                    with self._telling:
                        self._log.write(f"{name}| ".encode() + line.rstrip(b"\n") + b"\n")
                        self._log.flush()

    def _tell(self, text: str) -> None:
        with self._telling:
            print(text, flush=True)
            self._log.write(f"== {text}\n".encode())
            self._log.flush()
            os.fsync(self._log.fileno())


def grouped(parts: tuple[Part, ...]) -> list[list[Part]]:
    groups: list[list[Part]] = []
    for part in parts:
        if groups and part.together and groups[-1][-1].together:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--reduced", action="store_true", help="tiny networks on a CPU, to try the command")
    parser.add_argument("--parts", help="only these, by commas")
    parser.add_argument("--render", type=Path, help="the tables of a results.jsonl; nothing is measured")
    arguments = parser.parse_args()

    if arguments.render:
        print(render(arguments.render))
        for path in write_tables(arguments.render, ROOT):
            print(f"written: {path}", file=sys.stderr)
        return
    names = [part.name for part in PARTS]
    wanted = names if arguments.parts is None else arguments.parts.split(",")
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"there is no part {', '.join(unknown)}; choose from {', '.join(names)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(HERE / "gpu_parts.py"), *(["--reduced"] if arguments.reduced else [])]
    if (clone := published_clone()) is not None:
        command += ["--published", str(clone)]
    run = Run(arguments.out.resolve(), arguments.minutes, command, reduced=arguments.reduced)
    run.all(tuple(part for part in PARTS if part.name in wanted))
    print(f"results in {run.results}")


if __name__ == "__main__":
    main()
