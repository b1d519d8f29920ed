"""The page in a real Chromium: it draws, moves, stops, keeps visitors apart, fits a phone, and needs no other host."""

from __future__ import annotations

import base64
import dataclasses
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import assert_sentence

from ddt_accel import SamplingSpec, Schedule, draw_noise, load_model, sample
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.evaluation.fidelity import to_uint8
from ddt_accel.report.pictures import png
from ddt_accel.workspace import Workspace

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:  # before what takes seconds to import
    pytest.skip("Chromium is not installed (on Debian: apt install chromium)", allow_module_level=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("gradio", reason="gradio is not installed (extra web)")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed (pip install playwright)"
    )
    from ddt_accel.studio.app import Studio

pytestmark = pytest.mark.filterwarnings("ignore")  # of servers and browsers, in threads of their own
SPEC = SamplingSpec(num_steps=16, guidance=1.5)
SHAPE = (3, 8, 8)
ALONG = 180_000  # ms that anything may take, on a machine that is very busy


class Gate:
    """Holds a network at its encoder while it is closed, and counts how often that has run."""

    def __init__(self) -> None:
        self.open, self.reached, self.runs = threading.Event(), threading.Event(), 0
        self.open.set()

    def __call__(self, state: torch.Tensor) -> None:
        self.reached.set()
        assert self.open.wait(ALONG / 1000)
        self.runs += 1

    def close(self) -> None:
        self.open.clear()
        self.reached.clear()


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="module")
def network(tiny_model_path):
    return load_model(tiny_model_path)


@pytest.fixture(scope="module")
def schedules(network) -> list[Schedule]:
    """Those of the slider, by cost."""
    known = {"checkpoint_sha256": network.source.sha256, "calibration_sha256": "2" * 64}
    return [
        dataclasses.replace(Schedule.uniform(SPEC, 3), predicted_error=0.1, **known),
        dataclasses.replace(Schedule.uniform(SPEC, 8), predicted_error=0.01, **known),
        Schedule.full(SPEC),
    ]


@pytest.fixture(scope="module")
def address(network, schedules, gate, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("workspace")
    for index, schedule in enumerate(schedules[:-1]):
        schedule.save(folder / f"{index}.json")
    names = ("ant", "bee", "cat", "dog")
    place = Workspace(folder)
    studio = Studio(TorchBackend(network, on_state=gate), SHAPE, name="tiny", class_names=names, place=place)
    _, local, _ = studio.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield local
    studio.page.close(verbose=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def screens(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("screens")


def opened(browser, address: str, width: int):
    """The page as a visitor of its own has it; what it requests is kept."""
    page = browser.new_context(viewport={"width": width, "height": 900}).new_page()
    page.set_default_timeout(ALONG)
    page.requests = []
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(address)
    page.wait_for_selector(".side.schedule.done")  # it draws by itself at first
    return page


@pytest.fixture(scope="module")
def visitor(browser, address):
    """Who goes through all tests, each page being some seconds' work for a browser."""
    page = opened(browser, address, 1280)
    yield page
    page.context.close()


@pytest.fixture(scope="module")
def narrow(browser, address):
    """Another one, with a phone."""
    page = opened(browser, address, 360)
    yield page
    page.context.close()


@pytest.fixture
def page(visitor, gate):
    """The visitor at the drawing tab, the slider where it was at first, with seed 0."""
    visitor.get_by_role("tab", name="Draw").click()
    type_seed(visitor, 0)
    slider = visitor.get_by_role("slider", name="Cost")
    slider.focus()
    slider.press("Home")
    slider.press("ArrowRight")
    visitor.wait_for_function("document.querySelector('.stop strong').textContent === '1'")
    yield visitor
    gate.open.set()


def drawn_after(page, action) -> None:
    """Waits until what `action` starts has been drawn: the page says the seed when it has."""
    page.evaluate("document.querySelector('#status p').textContent = ''")
    action()
    page.wait_for_function("document.querySelector('#status p').textContent.startsWith('Both')")


def expected(network, schedule: Schedule, seed: int) -> list[bytes]:
    """The PNGs of the first four classes."""
    noise = draw_noise(SHAPE, seed=seed, indices=range(4))
    return [png(pixels) for pixels in to_uint8(sample(network, schedule, noise, torch.arange(4)))]


def shown(page, side: str) -> list[bytes]:
    sources = page.eval_on_selector_all(f".side.{side} img", "images => images.map(image => image.src)")
    return [base64.b64decode(source.partition(",")[2]) for source in sources]


def type_seed(page, seed: object) -> None:
    page.get_by_label("Seed").fill(str(seed))
    page.get_by_label("Seed").press("Tab")


def test_it_draws_both_columns_and_asks_no_other_host(page, address, network, schedules, screens) -> None:
    drawn_after(page, page.get_by_role("button", name="Draw").click)
    assert shown(page, "original") == expected(network, schedules[2], 0)
    assert shown(page, "schedule") == expected(network, schedules[1], 0)  # the cheapest within 35 dB
    assert "40 dB" not in page.inner_text(".side.schedule")
    assert [line for line in page.inner_text(".side.schedule dl").splitlines() if line.endswith(("×", "dB"))]
    page.get_by_label("Show the difference").check()
    page.wait_for_selector(".side.difference img")
    page.screenshot(path=screens / "wide.png", full_page=True)
    others = [url for url in page.requests if not url.startswith((address, "data:", "blob:"))]
    assert others == []
    assert page.title() == "ddt-accel studio"


def test_the_slider_changes_what_is_drawn(page, network, schedules) -> None:
    slider = page.get_by_role("slider", name="Cost")
    slider.focus()
    slider.press("Home")
    page.wait_for_function("document.querySelector('.stop strong').textContent === '0'")
    assert "3 encoder runs" in page.inner_text(".stop")
    assert "3 encoder runs" in slider.get_attribute("aria-valuetext")
    assert page.get_by_role("slider", name="Guidance").is_disabled()
    page.get_by_role("button", name="Draw").focus()
    drawn_after(page, lambda: page.keyboard.press("Enter"))
    assert shown(page, "schedule") == expected(network, schedules[0], 0)
    slider.press("End")
    page.wait_for_function("document.querySelector('.stop strong').textContent === 'exact'")
    assert page.get_by_role("slider", name="Guidance").is_enabled()


def test_a_point_of_the_plot_moves_the_slider(page, screens) -> None:
    page.get_by_role("tab", name="Trade-off").click()
    point = page.get_by_role("button", name="0: ")
    point.wait_for()
    page.screenshot(path=screens / "plot.png")
    point.focus()
    page.keyboard.press("Enter")
    page.get_by_role("slider", name="Cost").wait_for()  # it leads back to drawing
    page.wait_for_function("document.querySelector('.stop strong').textContent === '0'")


def test_what_is_stopped_stops_within_a_step(page, gate) -> None:
    gate.close()
    page.get_by_role("button", name="Draw").click()
    assert gate.reached.wait(ALONG / 1000)
    before = gate.runs
    page.get_by_role("button", name="Stop").click()
    page.wait_for_function("document.querySelector('#status p').textContent === 'Stopped.'")
    gate.open.set()
    drawn_after(page, page.get_by_role("button", name="Draw").click)  # nothing is in its way
    assert gate.runs - before <= 1 + 16 + 8  # the step that ran, then the original, and the schedule


def test_two_visitors_get_their_own(page, narrow, gate, network, schedules) -> None:
    first, second = page, narrow
    gate.close()
    for page, seed in ((first, 7), (second, 8)):
        type_seed(page, seed)
        page.evaluate("document.querySelector('#status p').textContent = ''")
        page.get_by_role("button", name="Draw").click()
    assert gate.reached.wait(ALONG / 1000)
    gate.open.set()
    for page, seed in ((second, 8), (first, 7)):
        page.wait_for_function(f"document.querySelector('#status p').textContent.includes('seed {seed}')")
        assert shown(page, "original") == expected(network, schedules[2], seed)
        assert shown(page, "schedule") == expected(network, schedules[1], seed)


def test_mistakes_are_sentences(page) -> None:
    type_seed(page, -5)
    page.get_by_role("button", name="Draw").click()
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert alert.inner_text() == "The seed is -5; give a whole number from 0 to 4294967295."
    page.get_by_role("button", name="Roll").click()
    for _ in range(50):
        if page.get_by_label("Seed").input_value() != "-5":
            break
        page.wait_for_timeout(100)
    drawn_after(page, page.get_by_role("button", name="Draw").click)
    assert page.get_by_role("alert").count() == 0


def test_the_command_serves_until_it_is_stopped(tiny_model_path, tmp_path) -> None:
    """On a port of its own, which is told; then it ends as all commands do."""
    command = [sys.executable, "-m", "ddt_accel", "studio", "--model", str(tiny_model_path), "--port", "0"]
    with subprocess.Popen([*command, "-w", str(tmp_path)], stderr=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stderr is not None
            said = next(line for line in serving.stderr if line.startswith("The studio"))
            with urllib.request.urlopen(said.split()[2]) as answer:
                assert b"ddt-accel studio" in answer.read()
            serving.send_signal(signal.SIGINT)
            assert serving.wait(ALONG / 1000) == 130
            assert serving.stderr.read() == "Interrupted. The page is closed.\n"
        finally:
            serving.kill()


def test_what_the_command_refuses(cli, tiny_model_path, address, tmp_path) -> None:
    taken = address.rstrip("/").rpartition(":")[2]
    line = ["studio", "--model", tiny_model_path, "-w", tmp_path]
    assert_sentence(cli(*line, "--port", taken), f"--port is {taken}, and nothing can listen there")
    assert_sentence(cli(*line, "--decoder", "x"), "this model draws pictures itself; leave it out")
    assert_sentence(cli(*line, "--schedule", "cifar10-10of50"), "solved for the checkpoint")


def test_it_fits_a_phone_and_everything_has_a_name(narrow, screens) -> None:
    page = narrow
    nameless = """() => [...document.querySelectorAll('input, button, select, [role=button], [role=img], img')]
      .filter(one => one.offsetParent !== null && !(one.getAttribute('aria-label') || one.getAttribute('alt')
        || one.textContent.trim() || (one.labels && one.labels.length)))
      .map(one => one.outerHTML.slice(0, 200))"""
    for tab in ("How it works", "Trade-off", "Draw"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(200)
        page.screenshot(path=screens / f"narrow-{tab.split()[0]}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate(nameless) == []
    assert page.locator(".how svg").count() == 4
