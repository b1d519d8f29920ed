"""`serve` as it is run: two replicas by Ray Serve, one of which is killed, and a server that is told to stop."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import assert_sentence
from PIL import Image

from ddt_accel import Sampler, SamplingSpec, Schedule, load_model
from ddt_accel.evaluation.fidelity import to_uint8

pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'ddt-accel[cluster]'")

SPEC = SamplingSpec(num_steps=6, guidance=1.5)
SCHEDULES = {
    "fast": Schedule.uniform(SPEC, 2), "other": Schedule.uniform(SPEC, 4),
    "slow": Schedule.uniform(SamplingSpec(num_steps=300), 150),
}  # fmt: skip
BATCH, QUEUE, REPLICAS = 4, 6, 2


@dataclass(frozen=True)
class Running:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    port: int

    def ask(self, body: dict[str, Any] | None = None, path: str = "/v1/images/generations") -> tuple[int, Any, Any]:
        """Status, document and headers of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            if body is None:
                connection.request("GET", path)
            else:
                connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read()), answer.headers
        finally:
            connection.close()

    def replicas(self) -> list[int]:
        return [number for number, words in below(self.process.pid) if words.startswith("ray::ServeReplica")]


def below(process: int) -> list[tuple[int, str]]:
    """The processes that a process has begun, and those that these have, with their command lines."""
    parents, words = dict[int, int](), dict[int, str]()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                words[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
    found, grown = set[int](), {process}
    while grown := {one for one, parent in parents.items() if parent in grown} - found:
        found |= grown
    return [(one, words.get(one, "")) for one in sorted(found)]


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def server(tiny_model_path, tmp_path_factory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("serve")
    schedules = []
    for name, schedule in SCHEDULES.items():
        schedule.save(folder / f"{name}.json")
        schedules += ["--schedule", folder / f"{name}.json"]
    line = [
        "serve", "--port", 0, "--model", tiny_model_path, "--name", "tiny", "-w", folder / "run", "--workers", REPLICAS,
        "--threads", 1, "--batch-size", BATCH, "--max-queue", QUEUE, *schedules,
    ]  # fmt: skip
    command = [sys.executable, "-m", "ddt_accel", *map(str, line)]
    for _ in range(2):
        with open(folder / "err", "w") as err:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True)
        assert process.stdout is not None
        if said := process.stdout.readline():
            break
        process.wait()
        if "Where the machine is busy" not in (folder / "err").read_text():
            break  # else Ray gave up waiting for its own processes, after half a minute
    try:
        assert said.startswith("Serving at http://127.0.0.1:"), (folder / "err").read_text()
        yield Running(process, int(said.strip().rpartition(":")[2]))
        assert process.stdout.read() == ""
        told = (folder / "err").read_text()
        begins = (
            "Beginning",
            "No replica is ready on this machine yet.",
            "tiny by",
            "Only this machine",
            "SIGTERM: nobody new",
            "All requests",
        )
        assert all(line.startswith(begins) for line in told.splitlines()), told  # and nothing of Ray's
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def asked(prompt: int, seed: int, quality: str, n: int = 1) -> dict[str, Any]:
    return {"prompt": prompt, "seed": seed, "quality": quality, "n": n}


def pixels(document: Any) -> list[np.ndarray]:
    every = [base64.b64decode(one["b64_json"]) for one in document["data"]]
    return [np.asarray(Image.open(io.BytesIO(one))).astype(int) for one in every]


@pytest.fixture(scope="module")
def expected(tiny_model_path) -> Callable[[list[dict[str, Any]]], list[np.ndarray]]:
    """The images of requests, those of a schedule drawn at once."""
    model = load_model(tiny_model_path)

    def drawn(bodies: list[dict[str, Any]]) -> list[np.ndarray]:
        found: dict[int, np.ndarray] = {}
        for name in {body["quality"] for body in bodies}:
            mine = [k for k, body in enumerate(bodies) if body["quality"] == name]
            every = [(k, bodies[k]["prompt"], bodies[k]["seed"] + i) for k in mine for i in range(bodies[k]["n"])]
            _, labels, seeds = (list(column) for column in zip(*every, strict=True))
            images = to_uint8(Sampler(model, SCHEDULES[name])(labels, seeds)).astype(int)
            for k in mine:
                found[k] = images[[whose == k for whose, _, _ in every]]
        return [found[k] for k in range(len(bodies))]

    return drawn


def assert_answered(answers: list[tuple[int, Any, Any]], bodies: list[dict[str, Any]], expected) -> None:
    for (status, document, _), images in zip(answers, expected(bodies), strict=True):
        assert status == 200, document
        assert np.abs(np.stack(pixels(document)) - images).max() <= 1


def test_an_answer_depends_on_its_request_alone(server, expected) -> None:
    """Whatever it is batched with: many at once, of two schedules, are those that the sampler draws one by one."""
    bodies = [asked(k % 4, 10 + k // 2, ("fast", "other")[k % 2], n=1 + 4 * (k == 5)) for k in range(12)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(server.ask, bodies))
    assert_answered(answers, bodies, expected)
    assert server.ask(path="/health")[1] == {"status": "ok", "replicas": REPLICAS}
    processes = [server.process.pid, *server.replicas()]
    assert len({os.getpriority(os.PRIO_PROCESS, one) for one in processes}) == 1  # Ray's own would be behind all others


def test_streams_end_in_the_image(server, expected) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    body = {**asked(2, 5, "fast"), "stream": True, "partial_images": 1}
    connection.request("POST", "/v1/images/generations", json.dumps(body), {"content-type": "application/json"})
    told = [json.loads(line[6:]) for line in connection.getresponse().read().splitlines() if line[:6] == b"data: "]
    connection.close()
    assert [one["type"].rpartition(".")[2] for one in told] == ["partial_image", "completed"]
    assert np.abs(pixels({"data": told[1:]})[0] - expected([body])[0]).max() <= 1


def test_who_leaves_is_no_longer_waited_for(server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    body = json.dumps(asked(1, 0, "slow", n=16))
    connection.request("POST", "/v1/images/generations", body, {"content-type": "application/json"})
    until(lambda: "ddt_accel_requests_open 1.0" in metrics(server))
    connection.close()
    until(lambda: 'ddt_accel_requests_total{code="499"} 1.0' in metrics(server))


def test_mistakes_are_sentences(server) -> None:
    status, document, _ = server.ask({"prompt": "unicorn"})
    assert (status, document["error"]["param"]) == (400, "prompt")
    assert "or a name such as ant, bee, cat, dog." in document["error"]["message"]


def test_those_beyond_the_queue_are_told_when_to_come_again(server) -> None:
    """And the others are answered."""
    count = QUEUE + 8
    with ThreadPoolExecutor(count) as threads:
        answers = list(threads.map(server.ask, [asked(k % 4, k, "slow") for k in range(count)]))
    assert {status for status, _, _ in answers} == {200, 429}
    assert sum(status == 200 for status, _, _ in answers) >= QUEUE
    for status, document, headers in answers:
        if status == 429:
            assert int(headers["retry-after"]) >= 1
            assert document["error"]["message"].endswith("are waiting, and no more may; send this one again later.")


def test_a_replica_that_is_killed_costs_no_answer(server, expected) -> None:
    bodies = [asked(k % 4, k, "slow", n=2) for k in range(QUEUE)]
    victim = server.replicas()[0]
    with ThreadPoolExecutor(len(bodies)) as threads:
        answers = [threads.submit(server.ask, body) for body in bodies]
        time.sleep(0.3)
        os.kill(victim, signal.SIGKILL)
        assert_answered([one.result() for one in answers], bodies, expected)
    until(lambda: len(server.replicas()) == REPLICAS and victim not in server.replicas())


def test_who_waits_is_answered_before_the_server_ends(server, expected) -> None:
    """The last one here: afterwards nothing of it is left."""
    every = [number for number, _ in below(server.process.pid)]
    bodies = [asked(k, k, "slow") for k in range(3)]
    with ThreadPoolExecutor(len(bodies)) as threads:
        answers = [threads.submit(server.ask, body) for body in bodies]
        until(lambda: "ddt_accel_requests_open 3.0" in metrics(server) or any(one.done() for one in answers))
        server.process.send_signal(signal.SIGTERM)
        assert_answered([one.result() for one in answers], bodies, expected)
    assert server.process.wait(120) == 0
    with pytest.raises(ConnectionError):
        server.ask(path="/health")
    until(lambda: not any(Path(f"/proc/{number}/cmdline").exists() for number in every))


def metrics(server: Running) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def test_mistakes_of_the_command_line_are_found_before_anything_begins(cli, tmp_path) -> None:
    line = ["serve", "-w", tmp_path]
    assert_sentence(cli(*line, "--host", "0.0.0.0"), "--host is 0.0.0.0, which other machines reach, and there is no")
    assert_sentence(cli(*line, "--autoscaling", "[2]"), "--autoscaling is '[2]'; give Ray Serve's settings as JSON")
    assert_sentence(
        cli(*line, "--autoscaling", '{"replicas": 1}'), "--autoscaling has replicas, which Ray Serve does not"
    )
    assert_sentence(cli(*line, "--autoscaling", '{"max_replicas": 0}'), "not what Ray Serve takes: max_replicas: ")
    assert_sentence(cli(*line, "--autoscaling", '{"min_replicas": 1}', "--workers", 2), "give one of them")
    assert_sentence(cli(*line, "--max-images", 0), "--max-images is 0; give at least 1")
    assert_sentence(cli(*line, "--api-key-file", tmp_path / "none"), "could not be read as a file of keys")
    assert_sentence(cli(*line, "--schedule", "nowhere"), "There is no schedule at nowhere")
    SCHEDULES["fast"].save(tmp_path / "draft.json")
    assert_sentence(cli(*line, "--schedule", tmp_path / "draft.json"), "would be called draft, as a quality is; rename")
    SCHEDULES["fast"].save(tmp_path / "cifar10-5of50.json")
    twice = ["--schedule", "cifar10-5of50", "--schedule", tmp_path / "cifar10-5of50.json"]
    assert_sentence(cli(*line, *twice), "would be called cifar10-5of50, as another --schedule is")
    assert_sentence(cli(*line, "--batch-wait", "inf"), "--batch-wait is inf; give milliseconds")
    assert_sentence(cli(*line, "--decode-batch", 2), "--decode-batch is of --decoder, and there is none")


def test_without_ray_serve_it_is_said_what_to_install(cli, monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    monkeypatch.delattr("ray.serve", raising=False)
    assert_sentence(cli("serve", "-w", tmp_path), "pip install 'ddt-accel[cluster]'")
