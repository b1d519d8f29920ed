"""What the command line writes where: terminals, pipes, logs, terminals of few signs; and how it is stopped."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.table import Table

from ddt_accel.calibration.statistics import Calibration
from ddt_accel.cli import console
from ddt_accel.cli.plain import in_ascii
from ddt_accel.cli.tables import laid_out

COMMAND = [sys.executable, "-m", "ddt_accel"]
WORDS = st.lists(st.text("abcdefghijklmnop0123456789.±×", min_size=1, max_size=12), min_size=1, max_size=4)
CELLS = st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(WORDS.map(" ".join), min_size=n, max_size=n), min_size=1))


def table_of(heads: list[str], rows: list[list[str]]) -> Table:
    table = Table(*heads)
    for row in rows:
        table.add_row(*row)
    return table


@given(CELLS, st.one_of(st.none(), st.integers(24, 130)))
@settings(max_examples=80, deadline=None)
def test_tables_lose_no_word(rows: list[list[str]], width: int | None) -> None:
    """Of any table, in any width: every word of every cell and of every head is there, whole, and no line too long."""
    heads = [f"{letter} head" for letter in "qrstuv"[: len(rows[0])]]
    shown = laid_out(table_of(heads, rows), width, encoding="utf-8", errors="strict")
    wanted = {word for cell in [*heads, *(cell for row in rows for cell in row)] for word in cell.split()}
    assert wanted <= {word.removesuffix(":") for word in shown.split()} | set(shown.split())
    assert "…" not in shown
    if width is not None:
        assert all(len(line) <= width for line in shown.splitlines())


def test_tables_in_a_pipe_are_a_line_a_row() -> None:
    rows = [["evenly spread, by the published program " * 3, "10 of 50"], ["solved", "9 of 50"]]
    shown = laid_out(table_of(["schedule", "encoder runs"], rows), None, encoding="utf-8", errors="strict")
    assert [line for line in shown.splitlines() if "of 50" in line] == [
        line for line in shown.splitlines() if "evenly" in line or "solved" in line
    ]


def test_tables_too_wide_for_columns_are_blocks() -> None:
    shown = laid_out(table_of(["schedule", "speed-up", "PSNR, dB"], [["solved", "2.41x", "33.1"]]), 20,
                     encoding="utf-8", errors="strict")  # fmt: skip
    assert shown.splitlines() == ["schedule: solved", "  speed-up: 2.41x", "  PSNR, dB: 33.1"]


@pytest.mark.parametrize("columns", ["60", "80", "120", None])
def test_status_in_any_width(solved: Path, columns: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    environment |= {"COLUMNS": columns} if columns else {}
    ran = subprocess.run(
        [*COMMAND, "status", "-w", str(solved)], capture_output=True, text=True, env=environment, check=True
    )
    for word in ("schedule.json", "encoder", "runs", "predicted"):
        assert word in ran.stdout
    assert "…" not in ran.stdout
    assert "\x1b" not in ran.stdout


def test_hints_repeat_the_workspace() -> None:
    assert console.following("ddt-accel bench", workspace=Path("ddt-accel-run")) == "Next: ddt-accel bench"
    told = console.following("ddt-accel bench", "ddt-accel sample", workspace=Path("my run"))
    assert told == "Next: ddt-accel bench -w 'my run', or ddt-accel sample -w 'my run'"
    told = console.following("ddt-accel export", "ddt-accel bench", "ddt-accel fit --device cuda", device="cuda:1")
    assert told == "Next: ddt-accel export, or ddt-accel bench --device cuda:1, or ddt-accel fit --device cuda"
    assert console.given("--schedule", None) == ""
    assert console.given("--schedule", Path("it's.json")) == """ --schedule 'it'"'"'s.json'"""


def test_logs_have_a_line_every_ten_seconds(monkeypatch, capfd) -> None:
    """By a clock of its own: five stages of 8 s, a step a second, and then one of 100 s."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with console.stages() as on_stage:
        for label, total in [*((f"stage {index}", 8) for index in range(5)), ("long", 100)]:
            advance = on_stage(label, total)
            for _ in range(total):
                now[0] += 1
                advance()
    lines = capfd.readouterr().err.splitlines()
    assert 10 <= len(lines) <= 140 / 10 + 1
    left = [re.fullmatch(r"long: (\d+)/100, about (\d+) s left", line) for line in lines]
    assert {int(found[1]) + int(found[2]) for found in left if found} == {100}


def test_short_work_ends_with_a_line(capfd) -> None:
    with console.steps("sampling", 3) as bar:
        for done in (1, 2, 3):
            bar.to(done)
    assert capfd.readouterr().err == "sampling: 3/3\n"


def test_work_of_days_tells_its_speed_once_a_minute(capfd, monkeypatch) -> None:
    """Of what it did itself: what was done before has taken no time."""
    now = 100.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.steps("sampling", 500, begun=200, unit="images") as bar:
        for _ in range(100):
            now += 2.0
            bar.advance(3)
    told = capfd.readouterr().err.splitlines()
    assert told == [
        "sampling: 290/500, 1.5 images/s, about 2 min left",
        "sampling: 380/500, 1.5 images/s, about 80 s left",
        "sampling: 470/500, 1.5 images/s, about 20 s left",
    ]


PROGRESS = """
from ddt_accel.cli.console import steps
with steps("working", 3) as bar:
    for _ in range(3):
        bar.advance()
"""


@pytest.mark.parametrize(("settings", "bar"), [({}, True), ({"TERM": "dumb"}, False)])
def test_terminals_have_a_bar(settings: dict[str, str], bar: bool) -> None:
    mine, its = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", **settings}
    with subprocess.Popen([sys.executable, "-c", PROGRESS], stderr=its, env=environment) as process:
        os.close(its)
        shown = b""
        try:
            while piece := os.read(mine, 1 << 16):
                shown += piece
        except OSError:  # as Linux tells that nobody has the other end any more
            pass
    os.close(mine)
    assert process.returncode == 0
    assert (b"\x1b" in shown, b"left" in shown, b"3/3" in shown) == (bar, bar, True)


def test_logs_have_no_bars_whatever_colours_are_forced() -> None:
    environment = {**os.environ, "FORCE_COLOR": "1"}
    ran = subprocess.run([sys.executable, "-c", PROGRESS], stderr=subprocess.PIPE, env=environment, text=True)
    assert ran.stderr == "working: 3/3\n"


@pytest.mark.parametrize(
    ("arguments", "reader"),
    [
        ("inspect cifar10-10of50", "true"),
        ("--help", "true"),
        ("solve --help", "head -1"),
        ("inspect nowhere 2>&1", "true"),
    ],
)
def test_a_closed_pipe_is_no_bug(arguments: str, reader: str) -> None:
    line = f"{' '.join(COMMAND)} {arguments} | {reader}; echo ${{PIPESTATUS[0]}} >&2"
    ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert ran.stderr == "141\n"


def test_output_that_was_closed_before(solved: Path) -> None:
    line = f"{' '.join(COMMAND)} status -w {solved} >&-"
    ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(
    ("text", "plain"),
    [("●··●", "#..#"), ("1.5× → ±2 … ≥ 3", "1.5x -> +-2 ... >= 3"), ("2³² − 1", "2^32 - 1"), ("ü a", "\\xfc a")],
)
def test_signs_have_a_plain_form(text: str, plain: str) -> None:
    assert in_ascii(text) == plain


@pytest.mark.parametrize(
    ("settings", "arguments", "shown"),
    [
        ({"LC_ALL": "C"}, ["solve", "-k", "2"], r"^#[#.]{5}$(.|\n)*-> .*schedule.json"),
        ({"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}, ["status"], r"latents 3 x 8 x 8\n\+-+\+\n\| schedule"),
    ],
)
def test_terminals_of_few_signs(solved: Path, settings: dict[str, str], arguments: list[str], shown: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONIOENCODING", "PYTHONUTF8")}
    line = [*COMMAND, *arguments, "-w", str(solved)]
    ran = subprocess.run(line, env=environment | settings, capture_output=True, check=True)
    written = ran.stdout.decode("ascii")
    assert re.search(shown, written, re.MULTILINE), written
    assert "?" not in written


@pytest.mark.slow
def test_ctrl_c_says_what_is_kept(tiny_model_path: Path, tmp_path: Path) -> None:
    line = [*COMMAND, "calibrate", "--model", str(tiny_model_path), "--steps", "12", "--samples", "4000",
            "--batch-size", "1", "--sensitivity-samples", "0", "--workspace", str(tmp_path)]  # fmt: skip
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        partial, deadline = tmp_path / "calibration.partial.safetensors", time.monotonic() + 120
        while not partial.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    told = r"Interrupted\. (\d+) of 4000 samples are kept in (\S+); the same command goes on from there\."
    found = re.fullmatch(told, err.splitlines()[-1])
    assert found is not None, err
    assert int(found[1]) == Calibration.load(found[2]).num_samples


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.1, 0.9])
def test_it_is_stopped_quietly_at_any_time(tmp_path: Path, number: signal.Signals, seconds: float) -> None:
    """While typer, or PyTorch, is still being loaded."""
    code = (
        "import os, sys, threading\n"
        "from ddt_accel.__main__ import main\n"
        f"threading.Timer({seconds}, os.kill, (os.getpid(), {int(number)})).start()\n"
        f"sys.argv = ['ddt-accel', 'calibrate', '-w', {str(tmp_path)!r}]\n"
        "main()"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert abs(ran.returncode) in (number, 128 + number)
    assert "Traceback" not in ran.stderr


def test_a_stop_before_a_command_is_at_work_is_a_sentence(cli, monkeypatch) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ddt_accel.cli.app._command", lambda: stopped)
    ran = cli("status")
    assert ran.code == 130
    assert ran.err.startswith("Interrupted. What was finished before is kept")
