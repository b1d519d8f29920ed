"""How a server holds under load: open-loop Poisson arrivals at parts of its capacity, beside one request at a time.

    python benchmarks/serving.py --requests 2000 --kill --out serving.json

Requests are of one image each, on this machine alone. Capacity is what `Sampler` draws a second in batches of the same
size, times the replicas. With --kill a replica is killed in the middle of each load. A part of the answers is compared
with what the sampler draws by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import torch
from PIL import Image

from ddt_accel import Sampler, Schedule, __version__, load_model
from ddt_accel.evaluation.fidelity import to_uint8

CHECKED = 200  # answers of a load that are drawn again, at most


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One request; `late` is how many seconds after its time it could be sent."""

    number: int
    status: int  # 0 where the connection failed or nothing came
    seconds: float
    late: float
    png: bytes | None


@dataclass(frozen=True, kw_only=True)
class Load:
    """What was asked for, and what came of it; seconds and images a second."""

    name: str
    offered: float | None
    requests: int
    answered: int
    refused: int  # 429
    failed: int
    wrong: int
    checked: int
    killed: int
    throughput: float
    p50: float
    p99: float
    batch: float  # mean images of a batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--schedule", default="cifar10-fitted-5of7")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each replica")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.8, 1.1])
    parser.add_argument("--requests", type=int, default=2000, help="of each load, at most")
    parser.add_argument("--seconds", type=float, default=300.0, help="of arrivals of each load, at most")
    parser.add_argument("--one-by-one", type=int, default=50, help="requests that are sent one after the other")
    parser.add_argument("--kill", action="store_true", help="kill a replica in the middle of each load")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sampler = Sampler(load_model(options.model), Schedule.load(options.schedule), batch_size=options.batch_size)
    rate = throughput_of_sampler(sampler)
    conditions = {
        "model": options.model, "schedule": options.schedule, "batch_size": options.batch_size,
        "replicas": options.workers, "threads": options.threads, "cores": os.cpu_count(), "seed": options.seed,
        "machine": platform.processor() or platform.machine(), "torch": torch.__version__, "ddt_accel": __version__,
        "load_average": os.getloadavg()[0], "sampler_images_per_second": rate,
        "batch_seconds": options.batch_size / rate,
    }  # fmt: skip
    print("; ".join(f"{name} {value}" for name, value in conditions.items()), flush=True)
    loads = asyncio.run(measured(options, sampler, rate * options.workers))
    print(f"{'load':>10} {'offered/s':>10} {'drawn/s':>8} {'p50 s':>7} {'p99 s':>7} {'batch':>6} answers")
    for one in loads:
        offered = "–" if one.offered is None else f"{one.offered:.1f}"
        print(
            f"{one.name:>10} {offered:>10} {one.throughput:8.1f} {one.p50:7.2f} {one.p99:7.2f} {one.batch:6.1f} "
            f"{one.answered} of {one.requests}, {one.refused} refused, {one.failed} failed, {one.wrong} of "
            f"{one.checked} wrong, {one.killed} replicas killed"
        )
    if options.out is not None:
        document = {"conditions": conditions, "loads": [asdict(one) for one in loads]}
        options.out.write_text(json.dumps(document, indent=1) + "\n")


def throughput_of_sampler(sampler: Sampler) -> float:
    """Images a second in whole batches, the best of five after one that is not counted."""
    best = 0.0
    for k in range(6):
        started = time.perf_counter()
        sampler([0] * sampler.batch_size, 0)
        if k:
            best = max(best, sampler.batch_size / (time.perf_counter() - started))
    return best


async def measured(options: argparse.Namespace, sampler: Sampler, capacity: float) -> list[Load]:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "ddt_accel", "serve", "--port", "0", "--model", options.model, "--schedule",
            options.schedule, "-w", folder, "--workers", str(options.workers), "--threads", str(options.threads),
            "--batch-size", str(options.batch_size),
        ]  # fmt: skip
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().rpartition(" ")[2].strip()
            if not url:
                raise SystemExit("The server did not begin.")
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(300)) as session:
                return await all_loads(options, sampler, capacity, session, server.pid)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()


async def all_loads(
    options: argparse.Namespace, sampler: Sampler, capacity: float, session: aiohttp.ClientSession, server: int
) -> list[Load]:
    await asyncio.gather(*(asked(session, number, 0.0) for number in range(2 * options.batch_size)))  # not counted
    found = []
    before, started = await batches(session), time.perf_counter()
    one_by_one = [await asked(session, number, 0.0) for number in range(options.one_by_one)]
    seconds = time.perf_counter() - started
    found.append(load("one by one", None, one_by_one, seconds, sampler, 0, before, await batches(session)))
    for part in options.loads:
        offered = part * capacity
        gaps = np.random.default_rng([options.seed, round(1000 * part)]).exponential(1 / offered, options.requests)
        times = np.cumsum(gaps)
        times = times[times < options.seconds]
        before, started = await batches(session), time.perf_counter()
        tasks = [asyncio.create_task(at(session, number, started + moment)) for number, moment in enumerate(times)]
        killed = 0
        if options.kill:
            await asyncio.sleep(max(0.0, started + times[len(times) // 2] - time.perf_counter()))
            if replicas := replicas_of(server):
                os.kill(replicas[0], signal.SIGKILL)
                killed = 1
        answers = await asyncio.gather(*tasks)
        seconds = time.perf_counter() - started
        found.append(load(f"{part:g}", offered, answers, seconds, sampler, killed, before, await batches(session)))
    return found


async def at(session: aiohttp.ClientSession, number: int, moment: float) -> Answer:
    """A request that is sent at its time, whatever has become of the others."""
    await asyncio.sleep(max(0.0, moment - time.perf_counter()))
    return await asked(session, number, time.perf_counter() - moment)


async def asked(session: aiohttp.ClientSession, number: int, late: float) -> Answer:
    started = time.perf_counter()
    body = {"prompt": number % 10, "seed": number}
    try:
        async with session.post("/v1/images/generations", json=body) as answer:
            status, told = answer.status, await answer.json()
            png = base64.b64decode(told["data"][0]["b64_json"]) if status == 200 else None
    except (aiohttp.ClientError, TimeoutError):
        status, png = 0, None
    return Answer(number=number, status=status, seconds=time.perf_counter() - started, late=late, png=png)


async def batches(session: aiohttp.ClientSession) -> tuple[float, float]:
    """How many images were drawn in how many batches, by the server's own count."""
    async with session.get("/metrics") as answer:
        lines = dict(line.rsplit(" ", 1) for line in (await answer.text()).splitlines() if not line.startswith("#"))
    return float(lines["ddt_accel_batch_images_sum"]), float(lines["ddt_accel_batch_images_count"])


def load(
    name: str, offered: float | None, answers: list[Answer], seconds: float, sampler: Sampler, killed: int,
    before: tuple[float, float], after: tuple[float, float],
) -> Load:  # fmt: skip
    """Latencies are counted from the time that a request was to be sent at."""
    good = [one for one in answers if one.status == 200]
    latencies = np.array([one.seconds + one.late for one in good] or [np.nan])
    checked = good[:: max(1, len(good) // CHECKED)][:CHECKED]
    return Load(
        name=name,
        offered=offered,
        requests=len(answers),
        answered=len(good),
        refused=sum(one.status == 429 for one in answers),
        failed=sum(one.status not in (200, 429) for one in answers),
        wrong=wrong(checked, sampler),
        checked=len(checked),
        killed=killed,
        throughput=len(good) / seconds,
        p50=float(np.quantile(latencies, 0.5)),
        p99=float(np.quantile(latencies, 0.99)),
        batch=(after[0] - before[0]) / max(1.0, after[1] - before[1]),
    )


def wrong(answers: list[Answer], sampler: Sampler) -> int:
    """How many differ from the sampler's own picture by more than the rounding of sums may: a level of 256."""
    drawn = to_uint8(sampler([one.number % 10 for one in answers], [one.number for one in answers])) if answers else []
    count = 0
    for answer, expected in zip(answers, drawn, strict=True):
        picture: Any = np.asarray(Image.open(io.BytesIO(answer.png or b"")))
        count += int(np.abs(picture.astype(int) - expected.astype(int)).max() > 1)
    return count


def replicas_of(server: int) -> list[int]:
    """The processes of replicas that a server has begun."""
    parents, names = dict[int, int](), dict[int, str]()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(folder.name)] = (folder / "cmdline").read_text()
            except OSError:
                continue
    found, grown = set[int](), {server}
    while grown := {one for one, parent in parents.items() if parent in grown} - found:
        found |= grown
    return sorted(one for one in found if names.get(one, "").startswith("ray::ServeReplica"))


if __name__ == "__main__":
    main()
