"""What finishing a run of many images takes: memory and seconds of `sample --npz`, from ranges that are drawn already.

Makes a run of synthetic pictures, of which nothing compresses, and writes their npz in a process of its own, which
says how much memory it had before and at most. Twice the size of the pictures is taken on the disk, and given back.

Usage: python benchmarks/many_images.py [--images 50000] [--side 256] [--range 64] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ddt_accel.drawing.identity import RunIdentity
from ddt_accel.drawing.images import Images
from ddt_accel.drawing.run_folder import RunFolder

FINISH = """
import json, resource, sys, time
from pathlib import Path
from ddt_accel.drawing.run import write_npz
from ddt_accel.drawing.run_folder import RunFolder
def mebibytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, started = mebibytes(), time.perf_counter()
write_npz(RunFolder.load(Path(sys.argv[1])), Path(sys.argv[2]), lambda images: None, alone=True)
print(json.dumps({"before": before, "peak": mebibytes(), "seconds": time.perf_counter() - started}))
"""


def synthetic(folder: Path, images: int, side: int, size: int) -> RunFolder:
    """A finished run of noise."""
    identity = RunIdentity(
        seed=0, labels="equal", sampling="none", schedule_sha256="0" * 64, latents=f"3,{side},{side}",
        checkpoint_sha256=None, guide_sha256=None, backend="synthetic", decoder_sha256=None,
    )  # fmt: skip
    run, random = RunFolder.begun(folder, identity, images, size), np.random.default_rng(0)
    for indices in run.ranges():
        rows = random.integers(0, 256, (len(indices), side, side, 3), dtype=np.uint8)
        run.write(Images(first=indices.start, rows=rows, labels=np.array(indices) % 1000), {})
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--range", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk that is to be measured")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        started = time.perf_counter()
        run = synthetic(Path(folder) / "run", arguments.images, arguments.side, arguments.range)
        written = time.perf_counter() - started
        npz = Path(folder) / "samples.npz"
        line = [sys.executable, "-c", FINISH, str(run.folder), str(npz)]
        told = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout)
        what = f"{arguments.images} pictures of {arguments.side} px in ranges of {arguments.range}"
        print(f"{what}: {npz.stat().st_size / 1e9:.2f} GB")
        print(f"ranges    {written:6.1f} s to make and write")
        print(f"npz       {told['seconds']:6.1f} s to check and write")
        print(f"memory    {told['peak']:6.0f} MiB at most, {told['before']:.0f} MiB before the first range")


if __name__ == "__main__":
    main()
