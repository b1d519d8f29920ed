"""`benchmarks/gpu.py`: a part that hangs, dies or says nothing costs no other; every figure is on the disk at once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402
import gpu_parts  # noqa: E402
import parts as of_trajectories  # noqa: E402
import record  # noqa: E402
import setting  # noqa: E402
import tables  # noqa: E402

# What parts do, by name; the script is given what `gpu_parts.py` is, which is what all others are.
SCRIPT = f"""
import json, os, pathlib, socket, subprocess, sys, time
sys.path.insert(0, {str(BENCHMARKS)!r})
from record import record
name, results = sys.argv[1], pathlib.Path(sys.argv[3])
if name in os.environ.get("REAL", "").split(","):
    with socket.socket(socket.AF_UNIX) as workshop:
        workshop.connect(os.environ["WORKSHOP"])
        given = [*sys.argv[1:], "--reduced", "--published", os.environ["CLONE"]]
        socket.send_fds(workshop, [json.dumps([given, dict(os.environ)]).encode()], [1])
        sys.exit(int(workshop.recv(8)))
if name != "silent":
    record(results, name, "first", 1.5, unit="ms")
    print("told by", name)
if name == "hangs":
    child = subprocess.Popen(["sleep", "60"])  # of the part's own
    record(results, name, "child", child.pid)
    time.sleep(60)
if name == "dies":
    os.abort()
if name == "floods":
    for _ in range(40):
        print("x" * (1 << 16), end="")
if name == "counts":
    for count in range(100_000):
        record(results, name, str(count), count)
if name == "fails":
    raise ValueError("no such kernel")
record(results, name, "last", 2.5)
"""
# Nearly all that a small part takes is importing PyTorch: real ones are forks of one process that has.
WORKSHOP = f"""
import json, os, socket, sys
import torch._dynamo, ddt_accel.backends.compiled, ddt_accel.fitting.fit
with socket.socket(socket.AF_UNIX) as workshop:
    workshop.bind(sys.argv[1])
    workshop.listen()
    print("open", flush=True)
    while True:
        client, _ = workshop.accept()
        if not os.fork():
            told, (stream,), *_ = socket.recv_fds(client, 1 << 20, 1)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            given, environment = json.loads(told)
            os.environ.update(environment)
            sys.argv, code = ["gpu_parts.py", *given], 1
            sys.path.insert(0, {str(BENCHMARKS)!r})
            try:
                import gpu_parts
                gpu_parts.main()
                code = 0
            finally:
                sys.stdout.flush()
                client.send(str(code).encode())
                os._exit(code)
        client.close()
"""
# What a machine with PyTorch alone lacks.
BARE = """
import sys
from importlib.machinery import PathFinder
ABSENT = {"typer", "rich", "onnxruntime", "matplotlib", "yaml", "PIL", "scipy", "hypothesis", "onnxscript", "diffusers",
          "huggingface_hub", "xdist", "tensorrt", "tensorrt_rtx"}
class Bare:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else PathFinder.find_spec(name, path, target)
sys.meta_path = [Bare if one is PathFinder else one for one in sys.meta_path if "editable" not in repr(one)]
"""
# The published implementation as far as it is called, by our network.
CLONE = {
    "src/models/denoiser/decoupled_improved_dit.py": """
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.networks.ddt.network import DDT as Ours
class DDT(Ours):
    def __init__(self, **config):
        super().__init__(DDTConfig(**config))
    def forward(self, x, t, y, s=None):
        s = self.encode(x, t, y) if s is None else s
        return self.decode(x, s), s
""",
    "src/diffusion/base/guidance.py": "def simple_guidance_fn(v, w): ...",
    "src/diffusion/flow_matching/scheduling.py": "class LinearScheduler: ...",
    "src/diffusion/stateful_flow_matching/sharing_sampling.py": """
import torch
class EulerSampler:
    def __init__(self, num_steps, **settings):
        self.steps, self.recompute_timesteps = num_steps, []
    def __call__(self, network, noise, labels, null):
        x, s, y = noise, None, torch.cat([null, labels])
        for k in range(self.steps):
            t = torch.full((2 * len(x),), k / self.steps)
            v, s = network(torch.cat([x, x]), t, y, None if k in self.recompute_timesteps else s)
            x = x + v.chunk(2)[1] / self.steps
        return x
""",
}


@pytest.fixture
def command(tmp_path) -> list[str]:
    (tmp_path / "script.py").write_text(SCRIPT)
    return [sys.executable, str(tmp_path / "script.py")]


@pytest.fixture
def out(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def bare(tmp_path, monkeypatch) -> None:
    """For processes that are started: little is installed, nothing is compiled, which takes long, and there is a clone
    of the published implementation."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(BARE)
    for name, text in CLONE.items():
        path = tmp_path / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "bare"))
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.setenv("CLONE", str(tmp_path / "clone"))


@pytest.fixture
def workshop(tmp_path, bare, monkeypatch) -> Iterator[None]:
    path = tmp_path / "workshop"
    environment = {**os.environ, "PYTHONPATH": f"{os.environ['PYTHONPATH']}{os.pathsep}{ROOT}"}
    line = [sys.executable, "-c", WORKSHOP, str(path)]
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        monkeypatch.setenv("WORKSHOP", str(path))
        yield
        process.kill()


def parts(*names: str, limit: float = 20.0, **settings) -> tuple[gpu.Part, ...]:
    return tuple(gpu.Part(name=name, limit=limit, **settings) for name in names)


def found(folder: Path) -> dict[tuple[str, str], object]:
    return {(one["part"], one["name"]): one["value"] for one in record.read(folder / "results.jsonl")}


def waited(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    ends = time.monotonic() + seconds
    while not condition() and time.monotonic() < ends:
        time.sleep(0.05)
    return condition()


def gone(process: int) -> bool:
    """Whether it has ended, be it that nobody has asked for its end yet."""
    status = Path(f"/proc/{process}/status")

    def ended() -> bool:
        try:
            return "State:\tZ" in status.read_text()
        except OSError:
            return True

    return waited(ended, 5)


def test_no_part_costs_another(out, command, capsys) -> None:
    run = gpu.Run(out, 1.0, command)
    run.all((*parts("works", "dies", "fails", "silent", "floods"), *parts("hangs", limit=1.5), *parts("after")))
    figures = found(out)
    for name in ("works", "dies", "fails", "hangs", "floods", "after"):
        assert figures[name, "first"] == 1.5
    assert figures["works", "last"] == figures["after", "last"] == 2.5
    assert figures["works", "ended"] == figures["silent", "ended"] == "done"
    assert figures["dies", "ended"] == "failed with -6"
    assert figures["fails", "ended"] == "failed with 1"
    assert "stopped at its limit" in figures["hangs", "ended"]
    assert gone(figures["hangs", "child"])  # what it had started went with it
    log = (out / "log.txt").read_text()
    assert "fails| ValueError: no such kernel" in log
    assert len(log) < 1.2 * gpu.TOLD  # of the part that says too much the beginning
    assert {path.name for path in out.iterdir()} == {"results.jsonl", "log.txt"}
    assert "after: done" in capsys.readouterr().out


def test_parts_beside_each_other_and_a_deadline_of_all(out, command) -> None:
    together = parts("hangs", "works", limit=2.0, together=True)
    assert gpu.grouped((*together, *parts("after"))) == [list(together), list(parts("after"))]
    started = time.monotonic()
    gpu.Run(out, 15 / 60, command).all((*together, *parts("after", least=11.0), *parts("small", least=1.0)))
    assert time.monotonic() - started < 15
    figures = found(out)
    assert figures["works", "ended"] == "done"
    assert figures["after", "ended"] == "skipped"
    assert figures["small", "last"] == 2.5


def test_what_was_measured_outlives_the_one_who_asked(out, command) -> None:
    """Killed at a random moment: every figure that anyone has seen is there, and whole."""
    code = (
        f"import sys, pathlib; sys.path.insert(0, {str(BENCHMARKS)!r}); import gpu\n"
        f"gpu.Run(pathlib.Path({str(out)!r}), 1, {command!r}).all((gpu.Part(name='counts', limit=30),))"
    )
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as runner:
        assert waited(lambda: ("counts", "3") in found(out))
        time.sleep(random.uniform(0, 0.3))
        seen = len(found(out))
        runner.kill()
    for path in Path("/proc").glob("[0-9]*/cmdline"):  # the stand-in does not go by itself, as real parts do
        try:
            if str(command[1]).encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)
        except OSError:
            continue
    figures = found(out)
    assert len(figures) >= seen
    counts = [value for (_, name), value in figures.items() if name.isdigit()]
    assert counts == list(range(len(counts)))


def test_real_parts_go_with_the_one_who_asked(out, bare) -> None:
    line = [BENCHMARKS / "gpu.py", "--reduced", "--minutes", "2", "--out", out, "--parts", "probe,trajectories"]

    def going() -> list[int]:
        def line_of(path: Path) -> bytes:
            try:
                return path.read_bytes()
            except OSError:
                return b""

        lines = {int(path.parent.name): line_of(path) for path in Path("/proc").glob("[0-9]*/cmdline")}
        return [pid for pid, line in lines.items() if b"gpu_parts.py" in line and str(out).encode() in line]

    with subprocess.Popen([sys.executable, *line], stdout=subprocess.DEVNULL) as runner:
        assert waited(lambda: ("probe", "bf16 product") in found(out), 60)
        runner.kill()
    assert waited(lambda: not going())
    assert found(out)["probe", "bf16 product"] > 0


def test_a_rehearsal_in_full(out, command, workshop, monkeypatch) -> None:
    """On a CPU, where little is installed, with parts that hang, die and say nothing among them."""
    monkeypatch.setenv("REAL", ",".join(part.name for part in gpu.PARTS))
    bad = parts("hangs", "dies", "silent", limit=3.0, least=1.0)
    patient = [replace(part, limit=600) for part in gpu.PARTS]  # on a machine that others use, too
    gpu.Run(out, 20.0, command).all((*patient[:4], *bad, *patient[4:]))
    figures = found(out)
    ended = {part.name: figures[part.name, "ended"] for part in (*gpu.PARTS, *bad)}
    assert ended.pop("dies") == "failed with -6"
    assert "stopped" in ended.pop("hangs")
    assert set(ended.values()) == {"done"}, (ended, (out / "log.txt").read_text()[-5000:])
    # Only what this processor cannot do has no figure.
    failed = [key for key, value in figures.items() if value is None]
    assert all(part == "probe" and "attention" in name for part, name in failed), failed
    for key in (
        ("probe", "copy"), ("tests", "exit code"), ("compile-512", "decoder, 3 sources"), ("parts", "encoder"),
        ("parts", "decoder, held, states cached"), ("trajectories", "two sources, batch 2, calls"),
        ("peers-1", "published, compiled, bf16 weights, its sharing, round 2"), ("peers-32", "ours, held, round 2"),
        ("scaling", "batch 2, 6 steps, 2 encoder runs"), ("fit", "fit two iterations"),
        ("dit-dh", "decoder, held, without the cache"), ("pixnerd", "held, batch 2"),
    ):  # fmt: skip
        assert figures[key] >= 0, key
    # The published implementation's stand-in is our network by the plain loop: so are ours.
    assert figures["peers-32", "published, eager, unshared, to the unshared in fp32"] > 30
    files = list(out.iterdir())
    assert len(files) <= 8
    assert all(path.stat().st_size < 16 << 20 for path in files)
    assert "| held |" in tables.render(out / "results.jsonl")
    assert tables.write_tables(out / "results.jsonl", ROOT) == []  # nothing of a rehearsal


def test_a_line_that_was_cut_off_is_left_out(tmp_path) -> None:
    path = tmp_path / "results.jsonl"
    record.record(path, "probe", "card", "H200")
    record.record(path, "trajectories", "held, batch 32, graph", 0.7)
    with path.open("a") as file:
        file.write('{"part": "probe", "na')
    assert [one["value"] for one in record.read(path)] == ["H200", 0.7]


def test_tables_of_what_came_back(tmp_path) -> None:
    path = tmp_path / "results.jsonl"
    for part, name, value, details in (
        ("probe", "card", "H200", {}), ("probe", "bf16 product", 400.0, {}), ("probe", "copy", 4000.0, {}),
        ("trajectories", "held, batch 32, graph", 0.7, {}),
        ("parts", "encoder", 30.0, {"multiply_adds": 6.8e12, "bytes": 3e9}), ("parts", "decoder, held", None, {}),
        ("peers-32", "published, eager, unshared, round 1", 190.0, {}),
        ("peers-32", "published, eager, unshared, round 2", 210.0, {}), ("peers-32", "ours, held, round 1", 20.0, {}),
    ):  # fmt: skip
        record.record(path, part, name, value, **details)
    rendered = tables.render(path)
    assert "| batch 32, ms | floor, H200 | floor, H100 | floor, RTX 4090 | measured, H200 |" in rendered
    assert "| held | 446 | 655 | 2690 | 700 |" in rendered
    assert "| unshared | 1210 | 1780 | 7380 | not measured |" in rendered
    assert "| encoder | 30.00 | 57% | 2% |" in rendered
    assert "| decoder, held | not measured | not measured | not measured |" in rendered
    assert "| published, as it is | 200.0 | not measured |" in rendered
    assert "| published as it is / ours, batch 32 | ≥ 8 | 10.0 |" in rendered
    assert "| host gaps, batch 32 | < 3 % | not measured |" in rendered


def test_the_documentation_has_the_tables(tmp_path) -> None:
    """As they are where nothing has come back; what comes is put in their place."""
    for name in tables.DOCUMENTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    empty, path = tmp_path / "empty.jsonl", tmp_path / "results.jsonl"
    text = "".join((ROOT / name).read_text() for name in tables.DOCUMENTS)
    assert all(f"<!-- measured: {name} -->" in text for name in tables.BLOCKS)
    if not list((BENCHMARKS / "results").glob("*.jsonl")):
        assert tables.write_tables(empty, tmp_path) == []
    record.record(path, "probe", "card", "H200")
    record.record(path, "trajectories", "held, batch 32, graph", 0.7)
    assert tables.write_tables(path, tmp_path)
    written = (tmp_path / "docs/concepts/runtime.md").read_text()
    assert "| held | 446 | 655 | 2690 | 700 |" in written
    assert written.count("<!-- end -->") == (ROOT / "docs/concepts/runtime.md").read_text().count("<!-- end -->")


def test_every_part_is_there_and_they_fit() -> None:
    assert list(gpu_parts.PARTS) == [part.name for part in gpu.PARTS]
    longest = [max(part.limit for part in group) for group in gpu.grouped(gpu.PARTS)]
    assert sum(longest[:6]) < 9 * 60  # the last four come if time remains, or in a second run


@pytest.mark.parametrize("name", ["tiny", "tiny-dit-dh", "tiny-pixnerd"])
def test_random_weights_are_drawn_once(tmp_path, monkeypatch, name: str) -> None:
    first = setting.network(name, "cpu")
    monkeypatch.setenv(setting.DRAWN, str(tmp_path))
    for again in (setting.network(name, "cpu"), setting.network(name, "cpu")):
        assert again.source == first.source
        assert all(map(torch.equal, again.state_dict().values(), first.state_dict().values()))
    assert len(list(tmp_path.iterdir())) == 1
    x = torch.randn(2, *first.source.latent_shape)
    assert torch.isfinite(first(x, torch.tensor([0.2, 0.7]), torch.tensor([0, 1]))).all()


def test_floors_follow_from_what_is_counted() -> None:
    """As docs/concepts/runtime.md has it."""
    one = setting.XL2.multiply_adds((4, 32, 32))
    encoder, rows = one.encoder + one.modulations, 64
    assert encoder == pytest.approx(106.1e9, rel=1e-3)
    assert one.decoder == pytest.approx(25.4e9, rel=2e-3)
    held, unshared = rows * (10 * encoder + 50 * one.decoder), rows * 50 * (encoder + one.decoder)
    slot = rows * 256 * setting.XL2.modulation_size * 2
    assert (round(held / 1e12), round(unshared / 1e12), round(slot / 1e9, 2)) == (149, 421, 1.43)
    for card, products, copied in (("H200", 348e12, 4.19e12), ("H100", 237e12, 3.0e12), ("RTX 4090", 57e12, 1.0e12)):
        seconds = {
            "held": held / products + 50 * slot / copied, "two sources": held / products + 90 * slot / copied,
            "unshared": unshared / products,
        }  # fmt: skip
        for way, floor in tables.FLOORS[card].items():
            assert 1e3 * seconds[way] == pytest.approx(floor, rel=0.01), (card, way)


def test_families_beside_each_other(tmp_path, monkeypatch) -> None:
    line = ["parts.py", "--family", "tiny", "--backends", "compiled,torch", "--seconds", "0", "--out"]
    monkeypatch.setattr(sys, "argv", [*line, str(tmp_path / "out.json")])
    with torch.compiler.set_stance("force_eager"):  # compiling takes long
        of_trajectories.main()
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert len(rows) == 3 * 2 * 3
    for encoder, cached, anew in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        config, shape = setting.RANDOM[cached["network"]]
        made = 2 * config.multiply_adds(shape).modulations
        assert anew["multiply_adds"] - cached["multiply_adds"] == pytest.approx(made)
        assert encoder["multiply_adds"] > made
        assert min(one[key] for one in (encoder, cached, anew) for key in ("bytes", "seconds")) > 0
