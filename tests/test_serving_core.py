"""What a server does with requests, batches and mistakes, without Ray around it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pictures

from ddt_accel import Sampler, SamplingSpec, Schedule, load_model
from ddt_accel.backends.compiled import CompiledBackend
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.errors import ArtifactError, ConfigError, NumericsError
from ddt_accel.evaluation.fidelity import to_uint8

pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'ddt-accel[cluster]'")
pytest.importorskip("fastapi", reason="Ray Serve is not installed: pip install 'ddt-accel[cluster]'")

from ddt_accel.cli.painters import PainterSettings, open_painter
from ddt_accel.collection import Named
from ddt_accel.serving.answers import Drawn, Failed, Preview
from ddt_accel.serving.app import application
from ddt_accel.serving.keys import Keys
from ddt_accel.serving.limits import Limits
from ddt_accel.serving.line import Line
from ddt_accel.serving.offer import Offer, Order
from ddt_accel.serving.painter import Image, Painter
from ddt_accel.serving.replica import Replica
from ddt_accel.serving.request import RefusedError

SHAPE = (3, 8, 8)
SPEC = SamplingSpec(num_steps=6, guidance=1.5)
SCHEDULES = {
    "two": Schedule.uniform(SPEC, 2), "four": Schedule.uniform(SPEC, 4),
    "noisy": Schedule.uniform(SamplingSpec(num_steps=4, solver="sde"), 2), "exact": Schedule.full(SPEC),
}  # fmt: skip
LIMITS = Limits(images=5, body_bytes=400, queue=3)
KEY = "k" * 32
LOOP = asyncio.Runner()  # replicas go on working between requests


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return load_model(tiny_model_path)


# Batches


def images(*seeds: int, previews: int = 0, show: Any = None) -> list[Image]:
    return [Image(label=seed % 4, seed=seed, previews=previews, on_preview=show) for seed in seeds]


def alone(model, name: str, seed: int) -> np.ndarray:
    return to_uint8(Sampler(model, SCHEDULES[name])([seed % 4], seed))[0]


def assert_same(picture: np.ndarray, expected: np.ndarray) -> None:
    """But for the rounding of sums, which may fall to another of 256 levels."""
    assert np.abs(picture.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_pictures_are_those_of_the_sampler_whatever_is_drawn_beside_them(model, name: str) -> None:
    painter = Painter(TorchBackend(model), SCHEDULES, latent_shape=SHAPE, batch_size=3)
    found = painter.paint(name, images(3, 8, 3, 21, 5))
    for one, seed in zip(found, (3, 8, 3, 21, 5), strict=True):
        assert_same(one.picture, alone(model, name, seed))
    assert [one.batch.images for one in found if one.first] == [3, 2]
    assert found[0].batch.evaluations == SCHEDULES[name].spec.num_evaluations


class Small(TorchBackend):
    """A device with room for so many images."""

    def __init__(self, model, fits: int, error: Exception) -> None:
        super().__init__(model)
        self.fits, self.error, self.asked = fits, error, list[int]()

    def open(self, batch: int, latent_shape: tuple[int, int, int], slots: int, **given):
        self.asked.append(batch)
        if batch > self.fits:
            raise self.error
        return super().open(batch, latent_shape, slots, **given)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no room"), MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory")]
)
def test_what_does_not_fit_is_halved_and_goes_on(model, error: Exception) -> None:
    backend = Small(model, 3, error)
    painter = Painter(backend, SCHEDULES, latent_shape=SHAPE, batch_size=8)
    for _ in range(2):
        found = painter.paint("two", images(*range(9)))
        for one, seed in zip(found, range(9), strict=True):
            assert_same(one.picture, alone(model, "two", seed))
        assert {one.batch.images for one in found} <= {1, 2}
        assert painter.batch_size == 2
    backend.fits, backend.asked = 0, []
    painter = Painter(backend, SCHEDULES, latent_shape=SHAPE, batch_size=4)
    with pytest.raises((ConfigError, type(error))):
        painter.paint("two", images(0, 1))


def test_other_mistakes_of_a_batch_are_raised(model) -> None:
    painter = Painter(Small(model, 0, RuntimeError("a bug")), SCHEDULES, latent_shape=SHAPE, batch_size=8)
    with pytest.raises(RuntimeError, match="a bug"):
        painter.paint("two", images(0, 1))
    assert painter.batch_size == 8


def test_batches_are_filled_up_where_other_sizes_would_cost_more(model) -> None:
    def filled(backend: Any, count: int) -> int:
        painter = Painter(TorchBackend(model), SCHEDULES, latent_shape=SHAPE, batch_size=12)
        painter.backend = backend
        return painter.filled(count)

    assert [filled(TorchBackend(model), count) for count in (1, 3, 12)] == [1, 3, 12]
    assert [filled(CompiledBackend(model), count) for count in (1, 3, 12)] == [2, 3, 12]
    cuda = SimpleNamespace(device=torch.device("cuda"))
    assert [filled(cuda, count) for count in (1, 2, 3, 5, 8, 9, 12)] == [1, 2, 4, 8, 8, 12, 12]
    engines = SimpleNamespace(device=torch.device("cuda"), least_batch=4)
    assert [filled(engines, count) for count in (1, 4, 5)] == [4, 4, 8]


def test_previews_end_in_the_picture(model) -> None:
    """They foresee it from the velocity: where that no longer changes, exactly."""
    shown: dict[int, np.ndarray] = {}
    painter = Painter(TorchBackend(model), SCHEDULES, latent_shape=SHAPE, batch_size=4)
    watched = images(7, previews=3, show=shown.__setitem__)
    found = painter.paint("four", [*images(3), *watched])
    assert_same(found[0].picture, alone(model, "four", 3))
    assert_same(found[1].picture, alone(model, "four", 7))
    assert list(shown) == [0, 1, 2]
    errors = [np.abs(shown[k].astype(int) - found[1].picture).mean() for k in range(3)]
    assert errors[2] < errors[0]


def test_what_is_not_finite_is_told(tiny_model_path) -> None:
    broken = load_model(tiny_model_path)
    next(broken.parameters()).data.fill_(float("nan"))
    painter = Painter(TorchBackend(broken), SCHEDULES, latent_shape=SHAPE, batch_size=2)
    for previews in (0, 1):
        with pytest.raises(NumericsError):
            painter.paint("two", images(0, previews=previews))


# Waiting


class Work:
    """Tells what it was given; stops where it is told to."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[Any]]] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, key: str, items: list[Any]) -> Sequence[Any]:
        self.batches.append((key, items))
        assert self.go_on.wait(60)
        if "bad" in items:
            raise NumericsError("it is bad")
        return [f"{key}{item}" for item in items]


async def until(reached: Any) -> None:
    for _ in range(6000):
        if reached():
            return
        await asyncio.sleep(0.01)
    raise AssertionError


def test_who_waits_while_a_batch_is_drawn_is_in_the_next() -> None:
    async def run() -> None:
        work = Work()
        line = Line[Any, Any](work, batch_size=3, wait=0.0)
        work.go_on.clear()
        tasks = [asyncio.create_task(line.results("a", [0]))]
        await until(lambda: len(work.batches) == 1)
        for key, items in (("a", [1]), ("b", [2]), ("a", [3, 4, 5]), ("b", [6])):
            tasks.append(asyncio.create_task(line.results(key, items)))
            await asyncio.sleep(0)
        work.go_on.set()
        assert await asyncio.gather(*tasks) == [["a0"], ["a1"], ["b2"], ["a3", "a4", "a5"], ["b6"]]
        # By turns: whoever waits longest.
        assert work.batches == [("a", [0]), ("a", [1, 3, 4]), ("b", [2, 6]), ("a", [5])]

    asyncio.run(run())


def test_a_whole_batch_does_not_wait_for_others() -> None:
    async def run() -> None:
        work = Work()
        line = Line[Any, Any](work, batch_size=2, wait=3600.0)
        first = asyncio.create_task(line.results("a", [0]))
        await asyncio.sleep(0.05)
        assert work.batches == []
        assert await asyncio.wait_for(line.results("b", [1, 2]), 60) == ["b1", "b2"]
        assert await asyncio.wait_for(line.results("a", [3]), 60) == ["a3"]
        assert await first == ["a0"]

    asyncio.run(run())


def test_a_batch_that_fails_fails_for_its_own_alone() -> None:
    async def run() -> None:
        line = Line[Any, Any](Work(), batch_size=4, wait=0.0)
        results = await asyncio.gather(
            line.results("a", ["bad"]), line.results("b", [1]), line.results("a", [2]), return_exceptions=True
        )
        assert isinstance(results[0], NumericsError)
        assert results[1] == ["b1"]
        assert isinstance(results[2], NumericsError)  # it was in that batch
        assert await line.results("a", [3]) == ["a3"]

    asyncio.run(run())


def test_who_goes_takes_his_images_with_him() -> None:
    async def run() -> None:
        work = Work()
        line = Line[Any, Any](work, batch_size=4, wait=0.0)
        work.go_on.clear()
        first = asyncio.create_task(line.results("a", [0]))
        await until(lambda: len(work.batches) == 1)
        gone, stays = (asyncio.create_task(line.results("a", [one])) for one in (1, 2))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        work.go_on.set()
        assert await asyncio.gather(first, stays) == [["a0"], ["a2"]]
        assert work.batches == [("a", [0]), ("a", [2])]

    asyncio.run(run())


# Requests


class Alone:
    """One replica, in this process."""

    retried = 0

    def __init__(self, replica: Replica) -> None:
        self.replica, self.orders, self.left = replica, list[Order](), list[str]()

    async def draw(self, order: Order) -> Drawn:
        self.orders.append(order)
        found = await self.replica.draw(order)
        if isinstance(found, Failed):
            raise RefusedError(500, found.text)
        return found

    async def stream(self, order: Order) -> AsyncIterator[Preview | Drawn]:
        async for event in self.replica.stream(order):
            if isinstance(event, Failed):
                raise RefusedError(500, event.text)
            yield event

    async def running(self) -> int:
        return 1


class Stuck(Alone):
    """Answers nobody, and tells whose request was given up."""

    async def draw(self, order: Order) -> Drawn:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.left.append("draw")
            raise
        raise AssertionError

    async def stream(self, order: Order) -> AsyncIterator[Preview | Drawn]:
        try:
            await asyncio.sleep(3600)
            yield await self.draw(order)
        finally:
            self.left.append("stream")

    async def running(self) -> int:
        return 0


@pytest.fixture(scope="module")
def opened(tiny_model_path, tmp_path_factory) -> tuple[Painter, Offer]:
    settings = PainterSettings(
        workspace=tmp_path_factory.mktemp("none") / "run", said={"source": str(tiny_model_path)},
        given=(Named(name="two", schedule=SCHEDULES["two"]), Named(name="four", schedule=SCHEDULES["four"])),
        name="tiny", backend="torch", export_folder=None, device="cpu", threads=1, batch_size=4, decoder=None,
        decode_batch=None,
    )  # fmt: skip
    return open_painter(settings, 1)


@pytest.fixture
def alone_pool(opened) -> Alone:
    return Alone(Replica(lambda cores: opened, 1, 0.0))


def asked(
    app: Any, method: str, path: str, body: bytes = b"", gone: bool = False, leaves: bool = False, slow: bool = False,
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:  # fmt: skip
    """Status, headers and body of an answer, of which a client that is `gone` takes nothing; one `leaves` after its
    request, and a `slow` one never ends that."""
    sent: list[dict[str, Any]] = []
    parts = [body[k : k + 150] for k in range(0, len(body), 150)] or [b""]

    async def receive() -> dict[str, Any]:
        if leaves and not parts:
            return {"type": "http.disconnect"}
        if not parts or (slow and len(parts) == 1):
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None:
        if gone:
            raise ConnectionError
        sent.append(message)

    given = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
        "scheme": "http",
        "http_version": "1.1", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 9), "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip
    LOOP.run(asyncio.wait_for(app(scope, receive, send), 60))
    told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], told, b"".join(one.get("body", b"") for one in sent[1:])


def generated(app: Any, **fields: Any) -> tuple[int, dict[str, str], bytes]:
    return asked(app, "POST", "/v1/images/generations", json.dumps(fields).encode())


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Pictures.open(io.BytesIO(png)))


def pixels_of(answer: bytes) -> list[np.ndarray]:
    return [pixels(base64.b64decode(one["b64_json"])) for one in json.loads(answer)["data"]]


@pytest.fixture
def app(alone_pool, opened) -> Any:
    return application(alone_pool, opened[1], LIMITS, Keys())


REFUSED = [
    (400, None, "The body is no JSON object", b"{"),
    (400, None, "The body is no JSON object", b"[]"),
    (400, None, "The body is no JSON object", b""),
    (400, None, "The body is no JSON object", b'{"prompt": "\xff"}'),
    (400, None, "The body is no JSON object", b"[" * 390),
    (400, "prompt", 'prompt is "\\ud800"; give the number of a class', b'{"prompt": "\\ud800"}'),
    (400, "prompt", "prompt is missing; give the name or the number of a class.", {}),
    (400, "prompt", "prompt is unicorn; give the number of a class, 0 to 3, or a name such as ant, bee, cat, dog.",
     {"prompt": "unicorn"}),
    (400, "prompt", "prompt is 4; give the number of a class, 0 to 3", {"prompt": 4}),
    (400, "prompt", "prompt is -1; give the number", {"prompt": -1}),
    (400, "prompt", "prompt is true; give the name or the number of a class.", {"prompt": True}),
    (400, "prompt", "prompt is 1.5; give the name or", {"prompt": 1.5}),
    (400, "style", "style is no field of a request; the fields are prompt, model, n,", {"prompt": 1, "style": "vivid"}),
    (400, "n", "n is two; give how many images, a whole number from 1 on.", {"prompt": 1, "n": "two"}),
    (400, "n", "n is 0; give how many images", {"prompt": 1, "n": 0}),
    (400, "n", "n is 6; this server draws 1 to 5 at a time.", {"prompt": 1, "n": 6}),
    (400, "seed", "seed is -1; give a whole number from 0 to 2^32 - 1", {"prompt": 1, "seed": -1}),
    (400, "seed", "seed is 4294967295 for 2 images", {"prompt": 1, "seed": 2**32 - 1, "n": 2}),
    (400, "size", 'size is "512x512"; the model\'s pictures are 8x8.', {"prompt": 1, "size": "512x512"}),
    (400, "quality", "quality is hd; give draft, standard, high, exact, two, four", {"prompt": 1, "quality": "hd"}),
    (400, "response_format", "response_format is url; give b64_json, or png", {"prompt": 1, "response_format": "url"}),
    (400, "response_format", "is one image and no stream", {"prompt": 1, "response_format": "png", "n": 2}),
    (400, "partial_images", "partial_images is 2 without a stream", {"prompt": 1, "partial_images": 2}),
    (400, "stream", "stream is yes; give true", {"prompt": 1, "stream": "yes"}),
    (404, "model", 'model is "dall-e-3"; this server has tiny.', {"prompt": 1, "model": "dall-e-3"}),
    (413, None, "The body is longer than the 400 bytes", {"prompt": "x" * 500}),
]  # fmt: skip


@pytest.mark.parametrize(("status", "field", "said", "body"), REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence(app, alone_pool, status, field, said: str, body) -> None:
    given = body if isinstance(body, bytes) else json.dumps(body).encode()
    code, headers, answer = asked(app, "POST", "/v1/images/generations", given)
    error = json.loads(answer)["error"]
    assert (code, error["param"]) == (status, field), error
    assert said in error["message"]
    assert error["message"].endswith(".")
    assert headers["content-type"] == "application/json"
    assert alone_pool.orders == []


def test_other_places_are_refused_in_sentences(app) -> None:
    code, _, answer = asked(app, "GET", "/v1/imagine")
    assert (code, json.loads(answer)["error"]["message"]) == (
        404, "There is no /v1/imagine; /docs says what there is.",
    )  # fmt: skip
    assert asked(app, "GET", "/v1/images/generations")[0] == 405
    code, _, answer = asked(app, "POST", "/v1/images/generations", b'{"prompt": 1}', content_type="text/plain")
    assert (code, "application/json" in json.loads(answer)["error"]["message"]) == (400, True)


def test_images_are_those_of_seeds_that_count_up(app, model) -> None:
    status, _, answer = generated(app, prompt="Cat", n=5, seed=6, quality="two")
    assert status == 200, answer
    told = json.loads(answer)
    assert [one["seed"] for one in told["data"]] == [6, 7, 8, 9, 10]
    assert (told["schedule"], told["label"], told["size"], told["model"]) == ("two", 2, "8x8", "tiny")
    sampler = Sampler(model, SCHEDULES["two"])
    for picture, seed in zip(pixels_of(answer), range(6, 11), strict=True):
        assert_same(picture, to_uint8(sampler([2], seed))[0])


def test_one_image_may_be_a_file_and_a_seed_may_be_any(app) -> None:
    status, headers, png = generated(app, prompt="2", response_format="png", size="8x8")
    assert (status, headers["content-type"]) == (200, "image/png")
    again = generated(app, prompt=2, seed=int(headers["x-seed"]), quality="standard")
    assert_same(pixels_of(again[2])[0], pixels(png))


def test_qualities_are_schedules(app) -> None:
    told = json.loads(asked(app, "GET", "/v1/schedules")[2])
    assert told["qualities"] == {"draft": "two", "standard": "two", "high": "four", "exact": "exact"}
    by_name = {one["id"]: one for one in told["data"]}
    assert {name: one["encoder_runs"] for name, one in by_name.items()} == {"two": 2, "four": 4, "exact": 6}
    assert by_name["two"]["cost"] < by_name["four"]["cost"] < by_name["exact"]["cost"] == 1
    for quality, name in (("draft", "two"), ("high", "four"), ("exact", "exact"), ("auto", "two")):
        assert json.loads(generated(app, prompt=1, quality=quality)[2])["schedule"] == name
    (model,) = json.loads(asked(app, "GET", "/v1/models")[2])["data"]
    assert (model["id"], model["class_names"]) == ("tiny", ["ant", "bee", "cat", "dog"])


def test_the_standard_of_the_embedded_model_is_no_worse_than_what_costs_less(tmp_path) -> None:
    """Where the page's slider stands at first: the cheapest that ends as close to the reference."""
    settings = PainterSettings(
        workspace=tmp_path / "run", said={"source": "cifar10"}, given=(), name=None, backend="torch",
        export_folder=None, device="cpu", threads=1, batch_size=4, decoder=None, decode_batch=None,
    )  # fmt: skip
    offer = open_painter(settings, 1)[1]
    assert offer.qualities == {
        "draft": "cifar10-fitted-4of6", "standard": "cifar10-fitted-6of9", "high": "cifar10-25of50", "exact": "exact",
    }  # fmt: skip


def test_streams_have_previews_and_end_in_the_images(app) -> None:
    status, headers, answer = generated(app, prompt=3, n=2, seed=1, stream=True, partial_images=2, quality="four")
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/event-stream")
    events = [block.split("\n") for block in answer.decode().strip().split("\n\n")]
    kinds = [event[0].removeprefix("event: ") for event in events]
    assert kinds == ["image_generation.partial_image"] * 4 + ["image_generation.completed"] * 2
    told = [json.loads(event[1].removeprefix("data: ")) for event in events]
    assert sorted((one["index"], one["partial_image_index"]) for one in told[:4]) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    whole = pixels_of(generated(app, prompt=3, n=2, seed=1, quality="four")[2])
    for one, expected in zip(told[4:], whole, strict=True):
        assert_same(pixels(base64.b64decode(one["b64_json"])), expected)
    assert generated(app, prompt=9, stream=True)[0] == 400


def test_who_leaves_a_stream_before_its_begin_leaves_nothing_open(app) -> None:
    for _ in range(LIMITS.queue + 1):
        with pytest.raises(ConnectionError):
            asked(app, "POST", "/v1/images/generations", b'{"prompt": 1, "stream": true}', gone=True)
    assert generated(app, prompt=1)[0] == 200
    told = asked(app, "GET", "/metrics")[2].decode()
    assert 'ddt_accel_requests_total{code="499"} ' in told
    assert "ddt_accel_requests_open 0.0" in told


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_drawn_for_who_has_left(opened, alone_pool, stream: bool) -> None:
    pool = Stuck(alone_pool.replica)
    app = application(pool, opened[1], LIMITS, Keys())
    body = json.dumps({"prompt": 1, "stream": stream}).encode()
    asked(app, "POST", "/v1/images/generations", body, leaves=True)
    assert pool.left == ["stream" if stream else "draw"]
    told = asked(app, "GET", "/metrics")[2].decode()
    assert 'ddt_accel_requests_total{code="499"} 1.0' in told
    assert "ddt_accel_requests_open 0.0" in told


def test_metrics_count_what_was_done(app) -> None:
    generated(app, prompt=1, n=5)
    generated(app, prompt=1)
    generated(app, prompt="unicorn")
    generated(app, prompt=1, stream=True)
    lines = asked(app, "GET", "/metrics")[2].decode().splitlines()
    told = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}
    assert told['ddt_accel_requests_total{code="200"}'] == 3
    assert told['ddt_accel_requests_total{code="400"}'] == 1
    assert told['ddt_accel_images_total{schedule="two"}'] == 7
    assert told["ddt_accel_batch_images_sum"] == 7
    assert told["ddt_accel_batch_images_count"] == told["ddt_accel_step_seconds_count"] == 4  # five by four and one
    assert told["ddt_accel_queue_seconds_count"] == 3
    assert told["ddt_accel_requests_open"] == 0


def test_who_waits_too_long_is_told(opened, alone_pool) -> None:
    app = application(Stuck(alone_pool.replica), opened[1], Limits(timeout=0.05), Keys())
    status, _, answer = generated(app, prompt=1)
    assert (status, json.loads(answer)["error"]["message"]) == (504, "There was no image within 0.05 s.")
    assert asked(app, "GET", "/health")[0] == 503
    status, headers, answer = asked(app, "POST", "/v1/images/generations", b"{", slow=True)
    assert (status, json.loads(answer)["error"]["message"]) == (408, "The body did not come within 0.05 s.")
    assert headers["connection"] == "close"


def test_a_batch_that_fails_is_500_in_a_sentence(app, opened, monkeypatch) -> None:
    def fails(name: str, images: Sequence[Image]) -> None:
        raise NumericsError("It went to NaN.") if name == "two" else ValueError("no\nsecond line")

    monkeypatch.setattr(opened[0], "paint", fails)
    app = application(Alone(Replica(lambda cores: opened, 1, 0.0)), opened[1], LIMITS, Keys())
    for quality, said in (("two", "It went to NaN."), ("four", "ValueError: no")):
        status, _, answer = generated(app, prompt=1, quality=quality)
        assert (status, json.loads(answer)["error"]["message"]) == (500, said)


def test_only_who_has_a_key_is_let_in(opened, alone_pool, tmp_path) -> None:
    umlauts = "ü" * 16
    (tmp_path / "keys").write_text(f"# of the team\n{KEY}\r\n\n{'x' * 16}\n{umlauts}")
    keys = Keys.read(tmp_path / "keys")
    keys.check_host("0.0.0.0")
    app = application(alone_pool, opened[1], LIMITS, keys)
    for headers in ({}, {"authorization": "Bearer " + "y" * 32}, {"authorization": KEY}, {"authorization": "Bearer é"}):
        status, told, answer = asked(app, "GET", "/v1/models", **headers)
        assert (status, told["www-authenticate"]) == (401, "Bearer")
        assert KEY not in answer.decode()
    for key in (KEY, "x" * 16, umlauts):
        assert asked(app, "GET", "/v1/models", authorization=f"Bearer {key}")[0] == 200
    assert asked(app, "GET", "/health")[0] == 200


def test_keys_that_keep_nobody_out_are_refused(tmp_path) -> None:
    for content, said in (("# none\n", "has no key"), ("secret\n", "Key 1 of .* is shorter than 16")):
        (tmp_path / "keys").write_text(content)
        with pytest.raises(ConfigError, match=said):
            Keys.read(tmp_path / "keys")
    with pytest.raises(ArtifactError, match="could not be read as a file of keys"):
        Keys.read(tmp_path / "nowhere")
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        with pytest.raises(ConfigError, match="--api-key-file"):
            Keys().check_host(host)
    for host in ("127.0.0.1", "::1", "localhost"):
        Keys().check_host(host)


def test_replicas_tell_why_they_cannot(opened) -> None:
    def refuses(cores: int) -> tuple[Painter, Offer]:
        raise ConfigError("There is no model.")

    order = Order(schedule="two", schedule_sha256="0", label=1, seeds=(1,))
    failed = asyncio.run(Replica(refuses, 1, 0.0).offer())
    assert isinstance(failed, Failed)
    assert (type(failed.error), str(failed.error), failed.elsewhere) == (ConfigError, "There is no model.", True)
    other = asyncio.run(Replica(lambda cores: opened, 1, 0.0).draw(order))
    assert isinstance(other, Failed)
    assert "two has changed since the server began" in other.text


def test_what_the_server_is_asked_is_published(app) -> None:
    told = json.loads(asked(app, "GET", "/docs")[2])
    fields = told["components"]["schemas"]["ImageRequest"]["properties"]
    assert set(fields) >= {"model", "prompt", "n", "size", "response_format", "seed", "quality", "stream"}
    assert set(told["paths"]) == {"/v1/images/generations", "/v1/models", "/v1/schedules", "/health", "/metrics"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"images": 0}, "--max-images is 0"), ({"body_bytes": 1}, "--max-body is 1"),
        ({"queue": 0}, "--max-queue is 0"),
        ({"timeout": 0}, "--timeout is 0"),
    ],
)  # fmt: skip
def test_limits_that_let_nothing_through_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Limits(**given)
