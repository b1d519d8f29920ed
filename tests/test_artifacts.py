"""Files: what is written is read back, and no damage goes unnoticed."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ddt_accel import Calibration, SamplingSpec, Schedule
from ddt_accel.artifacts import (
    TEMPORARY,
    check_writable,
    checksum,
    format_of,
    read_arrays,
    read_json,
    replacing,
    sha256_of,
    write_arrays,
    write_atomic,
    write_json,
)
from ddt_accel.backends.manifest import Engine, Manifest
from ddt_accel.backends.tensors import Cut, as_lists, tensor_table
from ddt_accel.calibration.closed_loop import no_shared_sum
from ddt_accel.calibration.coarser import coarser_steps
from ddt_accel.errors import ArtifactError
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.sampling.noise import ImageRange

many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
keys = st.text().filter(lambda key: key not in ("format", "version", "checksum"))

SPEC = SamplingSpec(num_steps=5, guidance=1.5, last_step=0.04)
SCHEDULE = Schedule(
    spec=SPEC,
    refresh_steps=(0, 2, 3),
    forecasts={1: ((0, 0.75),), 4: ((2, -0.5), (3, 1.5))},
    forecast="calibrated",
    objective="power",
    times=(0.0, 0.1, 0.3, 0.3, 0.9),
    integrator=(((0, 0.1),), ((0, -0.1), (1, 0.3)), ((2, 0.2),), (), ((0, 0.1), (4, 0.2))),
    predicted_cost=0.25,
    predicted_error=0.125,
    checkpoint_sha256="ab",
)
MEANS = np.linspace(-1, 1, 15, dtype=np.float32).reshape(5, 3)
CENTRED = dataclasses.replace(SCHEDULE, mean_modulations=MEANS)
MEANS_NAME = f"means-{checksum({}, {'mean_modulations': MEANS})[:12]}.safetensors"
CALIBRATION = Calibration(
    spec=SPEC,
    similarity_sum=np.linspace(0, 1, 25).reshape(5, 5),
    gram_sum=np.linspace(0, 1, 50).reshape(2, 5, 5),
    mean_sum=np.linspace(0, 1, 20).reshape(5, 4),
    modulation_sum=np.linspace(0, 1, 30).reshape(5, 6),
    bias_sum=np.linspace(0, 1, 6),
    sensitivity_sum=np.linspace(0, 1, 15).reshape(5, 3),
    coarser_sum=np.ones((len(coarser_steps(SPEC)), 3)),
    shared_sum=np.ones_like(no_shared_sum(SPEC)),
    ranges=(ImageRange(seed=0, first=0, stop=4),),
    checkpoint_sha256="ab",
    latent_shape=(3, 8, 8),
)


def manifest(folder: Path) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name in ("encoder.onnx", "decoder.onnx"):
        (folder / name).write_bytes(b"a network")
        files[name] = sha256_of(folder / name)
    config = DDTConfig(
        in_channels=3, patch_size=2, num_groups=2, hidden_size=16, num_blocks=3, num_encoder_blocks=2, num_classes=2
    )
    made = Manifest(
        format="onnx", model="tiny", checkpoint_sha256="ab", latent_shape=(3, 8, 8), class_names=("a", "b"),
        config=config, precision="fp32", cache="modulations", sources=0, opset=20, files=files,
        tensors=as_lists(tensor_table(config, (3, 8, 8), Cut())), parity={"encoder": 1e-7}, engine=None,
        versions={"torch": "2"},
    )  # fmt: skip
    made.save(folder)
    return Manifest.load(folder)


def same_means(a: Schedule, b: Schedule) -> bool:
    assert a.mean_modulations is not None
    assert b.mean_modulations is not None
    return a == b and np.array_equal(a.mean_modulations, b.mean_modulations)


def same_calibration(a: Calibration, b: Calibration) -> bool:
    return a.sha256 == b.sha256 and np.array_equal(a.similarity_sum, b.similarity_sum)


KINDS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object], Callable[[Any, Any], bool]]] = {
    "schedule.json": (lambda p: SCHEDULE.save(p), Schedule.load, lambda a, b: a == b),
    MEANS_NAME: (lambda p: CENTRED.save(p.parent / "s.json"), lambda p: Schedule.load(p.parent / "s.json"), same_means),
    "calibration.safetensors": (lambda p: CALIBRATION.save(p), Calibration.load, same_calibration),
    "manifest.json": (lambda p: manifest(p.parent), lambda p: Manifest.load(p.parent), lambda a, b: a == b),
}


@given(st.dictionaries(keys, values, max_size=5))
@many
def test_documents_come_back(tmp_path: Path, content: dict[str, Any]) -> None:
    write_json(tmp_path / "x.json", "thing", 3, content)
    assert read_json(tmp_path / "x.json", "thing", 3) == content


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3), arrays(np.float64, array_shapes(max_dims=3, max_side=4)), max_size=3
    ),
    st.dictionaries(keys, values, max_size=3),
)
@many
def test_arrays_come_back(tmp_path: Path, tensors: dict[str, np.ndarray], content: dict[str, Any]) -> None:
    write_arrays(tmp_path / "x.safetensors", "thing", 1, content, tensors)
    document, back = read_arrays(tmp_path / "x.safetensors", "thing", 1)
    assert document == content
    assert set(back) == set(tensors)
    assert all(np.array_equal(back[name], tensors[name], equal_nan=True) for name in tensors)


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
@many
def test_a_flipped_bit_or_a_missing_end_is_noticed(tmp_path: Path, name: str, data: st.DataObject) -> None:
    """Or it changes nothing that is read, such as white space."""
    save, load, same = KINDS[name]
    path = tmp_path / name
    save(path)
    whole, original = path.read_bytes(), load(path)
    if data.draw(st.booleans(), label="flip"):
        damaged = bytearray(whole)
        damaged[data.draw(st.integers(0, len(whole) - 1), label="byte")] ^= 1 << data.draw(
            st.integers(0, 7), label="bit"
        )
    else:
        damaged = bytearray(whole[: data.draw(st.integers(0, len(whole) - 1), label="length")])
    path.write_bytes(damaged)
    refused = None
    try:
        read = load(path)
    except ArtifactError as error:
        refused = str(error)
    assert name in refused if refused else same(read, original)


@pytest.mark.parametrize("name", KINDS)
@given(content=values, binary=st.binary(max_size=200))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_foreign_files_are_refused(tmp_path: Path, name: str, content: Any, binary: bytes) -> None:
    for data in (json.dumps(content).encode(), binary):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ArtifactError):
            KINDS[name][1](tmp_path / name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("times", [0.0, 0.1, 0.2, 0.3]),
        ("times", [0.0, 0.1, 0.3, 0.2, 0.9]),
        ("times", [0.0, 0.1, 0.3, 0.5, 1 - 1e-12]),
        ("times", ["0", 0.1, 0.3, 0.5, 0.9]),
        ("times", [-0.1, 0.1, 0.3, 0.5, 0.9]),
        ("integrator", [[[0, 1.0]]]),
        ("integrator", [[[0.7, 1]], [], [], [], []]),
        ("integrator", [[["0", 1]], [], [], [], []]),
        ("integrator", [[[0, True]], [], [], [], []]),
        ("integrator", [["01"], [], [], [], []]),
        ("integrator", [[[0, 1e308]], [], [], [], []]),
        ("integrator", [[[1, 1.0]], [], [], [], []]),
        ("integrator", [[[0, 1.0], [0, 1.0]], [], [], [], []]),
        ("fitted_on", [1, 2]),
        ("fitted_on", [[1, 0, 4], [1, 2]]),
        ("fitted_on", [[1, 0, "4"]]),
        ("fitted_on", [[1, 96, 0]]),
        ("fitted_on", [[-1, 0, 4]]),
        ("fitted_on", {"a": 1}),
        ("fitted_on", 0),
    ],
)
def test_hand_edited_numbers_that_make_no_sense_are_refused(tmp_path: Path, field: str, value: Any) -> None:
    SCHEDULE.save(tmp_path / "schedule.json")
    document = json.loads((tmp_path / "schedule.json").read_text())
    del document["checksum"]
    (tmp_path / "schedule.json").write_text(json.dumps(document))
    assert Schedule.load(tmp_path / "schedule.json") == SCHEDULE
    (tmp_path / "schedule.json").write_text(json.dumps(document | {field: value}))
    with pytest.raises(ArtifactError, match="not a usable schedule"):
        Schedule.load(tmp_path / "schedule.json")


def test_images_of_one_fit_are_read_as_files_once_had_them(tmp_path: Path) -> None:
    SCHEDULE.save(tmp_path / "schedule.json")
    document = json.loads((tmp_path / "schedule.json").read_text())
    del document["checksum"]
    for written, read in (([3, 0, 96], ((3, 0, 96),)), (None, ()), ([[3, 0, 96], [4, 0, 8]], ((3, 0, 96), (4, 0, 8)))):
        (tmp_path / "schedule.json").write_text(json.dumps(document | {"fitted_on": written}))
        assert Schedule.load(tmp_path / "schedule.json").fitted_on == read


def test_another_version_and_another_kind_are_named(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    SCHEDULE.save(path)
    path.write_text(path.read_text().replace('"version": 4', '"version": 7'))
    with pytest.raises(ArtifactError, match="version 7"):
        Schedule.load(path)
    write_json(path, "ddt-accel workspace", 1, {})
    with pytest.raises(ArtifactError, match="ddt-accel workspace"):
        Schedule.load(path)


def test_a_schedule_can_be_edited_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    SCHEDULE.save(path)
    document = json.loads(path.read_text())
    document["refresh_steps"], document["forecasts"] = [0, 1, 4], {"2": [[0, -1.0], [1, 2.0]]}
    path.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="checksum"):
        Schedule.load(path)
    del document["checksum"]
    path.write_text(json.dumps(document))
    assert Schedule.load(path).refresh_steps == (0, 1, 4)
    assert Schedule.load(path).forecast_at(3) == ((1, 1.0),)
    for rows in ({"1": [[0, 1.0]]}, {"2": [[3, 1.0]]}, {"2": [[0, "x"]]}, {"2": [[0, 1.0], [0, 1.0]]}, {"x": []}, [1]):
        path.write_text(json.dumps({**document, "forecasts": rows}))
        with pytest.raises(ArtifactError, match="schedule"):
            Schedule.load(path)
    for nonsense in ([1, 2], [0, 9], "0", [0, "1"], None, [0, True]):
        path.write_text(json.dumps({**document, "refresh_steps": nonsense}))
        with pytest.raises(ArtifactError, match="refresh_steps"):
            Schedule.load(path)
    for key in document:
        path.write_text(json.dumps({k: v for k, v in document.items() if k != key}))
        with pytest.raises(ArtifactError):
            Schedule.load(path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "schedule.json"
    SCHEDULE.save(path)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ArtifactError, match="the disk is full"):
        Schedule.full(SPEC).save(path)
    monkeypatch.undo()
    assert Schedule.load(path) == SCHEDULE
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_real_limit_on_file_size_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "data"
    write_atomic(path, b"earlier")
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from ddt_accel.artifacts import write_atomic; from ddt_accel.errors import ArtifactError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: write_atomic(Path(sys.argv[1]), bytes(100_000))\n"
        "except ArtifactError: sys.exit(7)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 7
    assert path.read_bytes() == b"earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    code = (
        "import sys; from pathlib import Path; from ddt_accel.artifacts import write_json\n"
        "k = 0\n"
        "while True: k += 1; write_json(Path(sys.argv[1]), 'thing', 1, {'k': k, 'ballast': ['x'] * 5000})"
    )
    for delay in (0.0, 0.013, 0.031):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)])
        while not path.exists():
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(read_json(path, "thing", 1)["ballast"]) == 5000
        path.unlink()


def test_a_place_that_cannot_be_written_is_an_error_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="could not be written"):
        SCHEDULE.save(tmp_path / "file" / "schedule.json")
    with pytest.raises(ArtifactError, match="There is no schedule"):
        Schedule.load(tmp_path / "absent.json")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "9" * 5000, "[1e999]", "[" + "9" * 400 + "]", '{"format": "ddt-accel schedule", "version": NaN}'],
)
def test_json_that_python_stumbles_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ArtifactError, match="damaged or not JSON"):
        Schedule.load(tmp_path / "x.json")
    assert format_of(tmp_path / "x.json") is None


def test_links_are_followed_and_other_things_left_alone(tmp_path: Path) -> None:
    write_atomic(tmp_path / "real" / "data", b"earlier")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "data")
    write_atomic(tmp_path / "link", b"later")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "data").read_bytes() == b"later"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="no ordinary file"):
        write_atomic(tmp_path / "pipe", b"")
    assert (tmp_path / "pipe").is_fifo()


def test_a_manifest_names_both_networks(tmp_path: Path) -> None:
    made = manifest(tmp_path)
    dataclasses.replace(made, files={}).save(tmp_path)
    with pytest.raises(ArtifactError, match=r"no encoder\.onnx"):
        Manifest.load(tmp_path)
    dataclasses.replace(made, sources=2).save(tmp_path)
    with pytest.raises(ArtifactError, match="tensors"):
        Manifest.load(tmp_path)
    batches = ((1, 8, 32),)
    engine = Engine(
        library="tensorrt", version="10.9", gpu="sm_90", batches=batches, version_compatible=False,
        hardware_compatible=True, products={}, verified=None,
    )  # fmt: skip
    for wrong, said in ((engine, r"no encoder\.engine"), (dataclasses.replace(engine, library="x"), "library x")):
        dataclasses.replace(made, engine=wrong).save(tmp_path)
        with pytest.raises(ArtifactError, match=said):
            Manifest.load(tmp_path)


def refusing(number: int) -> Callable[..., None]:
    """A system call that is refused."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_permissions_are_the_usual_ones_and_nobody_is_asked_to_change_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = os.umask(0o027)
    try:
        for call in ("chmod", "fchmod", "umask", "link"):
            monkeypatch.setattr(os, call, refusing(errno.EPERM))
        for data in (b"earlier", b"later"):
            write_atomic(tmp_path / "data", data)
    finally:
        monkeypatch.undo()
        os.umask(earlier)
    assert (tmp_path / "data").read_bytes() == b"later"
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_that_cannot_synchronise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "fsync", refusing(number))
    write_atomic(tmp_path / "data", b"written")
    assert (tmp_path / "data").read_bytes() == b"written"


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EPERM, errno.EACCES])
@pytest.mark.parametrize("breaks", [False, True])
def test_a_file_system_that_does_not_rename_over_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, breaks: bool
) -> None:
    """Also where it gives up in the middle: then the earlier file is there again."""
    rename, calls = os.rename, []

    def not_over(source: object, target: object) -> None:
        calls.append(target)
        if os.path.exists(str(target)) or (breaks and len(calls) == 3):
            refusing(number)()
        rename(str(source), str(target))

    monkeypatch.setattr(os, "replace", not_over)
    monkeypatch.setattr(os, "rename", not_over)
    (tmp_path / "data").write_bytes(b"earlier")
    if breaks:
        with pytest.raises(ArtifactError, match="no permission" if number != errno.EEXIST else "File exists"):
            write_atomic(tmp_path / "data", b"later")
    else:
        write_atomic(tmp_path / "data", b"later")
    assert (tmp_path / "data").read_bytes() == (b"earlier" if breaks else b"later")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full; free space"),
        (errno.EDQUOT, "your disk quota is used up; free space"),
        (errno.EROFS, "the file system is read-only; choose another place"),
        (errno.EACCES, "you have no permission to write there"),
        (errno.EIO, "the disk reports an error"),
        (errno.ESTALE, "Stale file handle; choose another place"),
    ],
)
def test_the_sentence_names_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str) -> None:
    (tmp_path / "data").write_bytes(b"earlier")
    monkeypatch.setattr("builtins.open", refusing(number))
    for write in (check_writable, lambda path: write_atomic(path, b"later")):
        with pytest.raises(ArtifactError, match=said) as told:
            write(tmp_path / "data")
        assert str(told.value).startswith(f"{tmp_path / 'data'} could not be written: ")
        assert ("free space" in str(told.value)) == (number in (errno.ENOSPC, errno.EDQUOT))
    monkeypatch.undo()
    assert (tmp_path / "data").read_bytes() == b"earlier"


def test_names_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "circle").symlink_to("circle")
    for path, said in (
        (tmp_path / ("x" * 300), "the name is too long; choose a shorter one"),
        (tmp_path / "file" / "x", f"{tmp_path / 'file'} is no folder"),
        (tmp_path / "file" / "x" / "y", f"{tmp_path / 'file'} is no folder"),
        (Path("/dev/null/x/y"), "/dev/null is no folder"),
        (tmp_path / "circle", "its links lead in a circle"),
        (tmp_path, "it is no ordinary file"),
    ):
        for write in (check_writable, lambda path: write_atomic(path, b"x")):
            with pytest.raises(ArtifactError, match=re.escape(said)):
                write(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "file"]


def test_the_longest_names_are_written(tmp_path: Path) -> None:
    """255 bytes, of letters that take two: what has no name yet must not be called after it."""
    path = tmp_path / ("ü" * 127 + "x")
    check_writable(path)
    write_atomic(path, b"x")
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_arrays_in_any_order_of_memory(tmp_path: Path) -> None:
    """Pictures come as views of channels first; scalars stay scalars."""
    arrays = {"view": np.arange(24).reshape(2, 3, 4).transpose(0, 2, 1), "scalar": np.array(3.0)}
    write_arrays(tmp_path / "x.safetensors", "test", 1, {}, arrays)
    _, read = read_arrays(tmp_path / "x.safetensors", "test", 1)
    for name, array in arrays.items():
        assert read[name].shape == array.shape
        np.testing.assert_array_equal(read[name], array)


def test_a_temporary_name_of_its_own_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY}mine").write_bytes(b"of a process that was killed, and longer")
    with replacing(tmp_path / "x", temporary="mine") as file:
        file.write(b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"new")]
