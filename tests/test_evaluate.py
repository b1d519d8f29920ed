"""`evaluate`: the feature network against torch-fidelity's, pictures from wherever they lie, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_sentence
from inception_file import pictures, write_inception
from numpy.typing import NDArray
from PIL import Image

from ddt_accel.artifacts import read_json
from ddt_accel.cli.evaluating import FORMAT, VERSION
from ddt_accel.distribution.features import Features, features_of
from ddt_accel.distribution.frechet import Gaussian, frechet_distance, gaussian_of
from ddt_accel.distribution.inception import resized
from ddt_accel.distribution.inception_weights import FILE, PACKAGE, FeatureNetwork, load_inception
from ddt_accel.distribution.pictures import check_pairs, opened
from ddt_accel.distribution.statistics import Statistics, shipped_statistics
from ddt_accel.drawing.identity import RunIdentity
from ddt_accel.drawing.images import Images
from ddt_accel.drawing.run_folder import RunFolder
from ddt_accel.errors import CheckpointError, ConfigError, DependencyError

COUNT = 24
IDENTITY = RunIdentity(
    seed=0, labels="equal", sampling="6 steps of euler", schedule_sha256="a" * 64, latents="3,16,20",
    checkpoint_sha256="b" * 64, guide_sha256=None, backend="torch", decoder_sha256=None,
)  # fmt: skip


@pytest.fixture(scope="module")
def inception(once) -> Path:
    return once("inception", lambda folder: write_inception(folder / "random.pth")) / "random.pth"


def write_run(folder: Path, rows: NDArray[np.uint8], identity: RunIdentity = IDENTITY, finished: int = COUNT) -> Path:
    run = RunFolder.begun(folder, identity, len(rows), 8)
    for indices in run.ranges():
        if indices.stop <= finished:
            part = rows[indices.start : indices.stop]
            run.write(Images(first=indices.start, rows=part, labels=np.array(indices) % 4), {})
    return folder


def write_pngs(folder: Path, rows: NDArray[np.uint8]) -> Path:
    folder.mkdir(parents=True)
    for index, row in enumerate(rows):
        Image.fromarray(row).save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="module")
def looked_at(once, inception) -> Path:
    """A run, pictures in an npz, and the features of both, which commands have left there."""
    from conftest import typed

    def make(folder: Path) -> None:
        write_run(folder / "run", pictures(1))
        np.savez(folder / "real.npz", arr_0=pictures(2), arr_1=np.arange(COUNT))
        line = ["evaluate", folder / "run", "--reference", folder / "real.npz", "--inception", inception]
        assert typed(*line, "--out", folder / "first.json", "--json") == 0

    return once("looked-at", make)


@pytest.fixture
def place(looked_at, tmp_path, monkeypatch) -> Path:
    shutil.copytree(looked_at, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def evaluate(cli, inception) -> Callable[..., dict[str, object]]:
    def run(*line: object) -> dict[str, object]:
        ran = cli("evaluate", *line, "--inception", inception, "--json")
        assert ran.code == 0, ran.err
        return json.loads(ran.out)

    return run


@pytest.fixture
def seen(monkeypatch) -> list[int]:
    """How many pictures the network has been run over, each time."""
    counts: list[int] = []
    features = FeatureNetwork.features

    def counting(self: FeatureNetwork, rows: NDArray[np.uint8], **options: int) -> object:
        counts.append(len(rows))
        return features(self, rows, **options)

    monkeypatch.setattr(FeatureNetwork, "features", counting)
    return counts


def test_pictures_are_resized_as_tensorflow_1_did() -> None:
    """By its formula, pixel by pixel; enlarged and reduced."""
    x = torch.from_numpy(pictures(3, 1, (8, 12))).movedim(3, 1).float()
    for side in (5, 21):
        found = resized(x, side)[0]
        for i in range(side):
            for j in range(side):
                y, z = i * 8 / side, j * 12 / side
                top, left = int(y), int(z)
                bottom, right = min(top + 1, 7), min(left + 1, 11)
                above = x[0, :, top, left] * (1 - z + left) + x[0, :, top, right] * (z - left)
                below = x[0, :, bottom, left] * (1 - z + left) + x[0, :, bottom, right] * (z - left)
                torch.testing.assert_close(
                    found[:, i, j], above * (1 - y + top) + below * (y - top), rtol=1e-4, atol=1e-3
                )
    assert torch.equal(resized(x, 8)[..., :1], x[..., :1])


def test_features_are_those_of_torch_fidelity(inception) -> None:
    """Of its FeatureExtractorInceptionV3 (0.4.0) by the same weights; spatial ones of a hook on Mixed_6d.branch1x1."""
    found = load_inception(inception).features(pictures(1)[:2])
    assert found.logits is not None
    expected = [0.41717860102653503, 0.0, 0.05967676267027855, 0.05523303151130676]
    np.testing.assert_allclose(found.pool[0, :4], expected, rtol=1e-4, atol=1e-5)
    expected = [0.5138957500457764, 0.2719744145870209, 0.0, 0.05163785070180893, 0.11449494957923889, 0.0, 0.0,
                0.5927059650421143, 0.32560279965400696]  # fmt: skip
    np.testing.assert_allclose(found.spatial[0, :9], expected, rtol=1e-4, atol=1e-5)
    expected = [0.5587997436523438, 0.9687135219573975, 1.8773421049118042]
    np.testing.assert_allclose(found.logits[0, :3], expected, rtol=1e-3)


def test_the_network_of_the_extra() -> None:
    """The same numbers as the program that the wheel has."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        with pytest.raises(DependencyError, match=r"ddt-accel\[fid\]"):
            load_inception()
        pytest.skip("the extra `fid` is not installed")
    network, rows = load_inception(), pictures(1, 3)
    program = torch.jit.load(Path(spec.origin).parent / FILE).eval()
    with torch.inference_mode():
        expected = program((resized(torch.from_numpy(rows).movedim(3, 1).float(), 299) - 128) / 128)
    found = network.features(rows, batch_size=2)
    torch.testing.assert_close(found.pool, expected, atol=1e-4, rtol=1e-4)
    assert found.logits is None
    for path in shipped_statistics().values():
        assert Statistics.load(path).network == network.sha256


def test_figures_are_those_of_torch_fidelity(looked_at) -> None:
    """On the same pictures, by the same weights: its numbers (0.4.0), of its own features.

    sFID is by its function for FID; KID by its own in float64, for in float32 it has three digits here.
    """
    found = read_json(looked_at / "first.json", FORMAT, VERSION)
    expected = {
        "fid": 0.3226661751768699, "sfid": 12.306498014276354, "kid": 0.00011817982228250034,
        "kid_deviation": 0.0001818276006111667, "inception_score": 1.004749673443037, "precision": 0.875,
        "recall": 0.875,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-3)
    assert found["inception_score"] - 1 == pytest.approx(expected["inception_score"] - 1, rel=1e-3)
    assert found["kid_subset_size"] == 12
    assert (found["images"], found["reference_images"], found["size"]) == (COUNT, COUNT, [16, 20])
    assert [note for note in found["notes"] if "24 pictures" in note and "too high" in note]


def test_a_second_reference_costs_no_run_of_the_network(place, evaluate, seen) -> None:
    statistics = {"mu": np.zeros(2048), "sigma": np.eye(2048), "mu_s": np.ones(2023), "sigma_s": np.eye(2023)}
    np.savez(place / "adm.npz", **statistics)
    found = evaluate("run", "--reference", "adm.npz")
    assert seen == []
    features = load_features(place / "run")
    ours = np.cov(features.T)
    scales = np.sqrt(np.linalg.eigvalsh(ours).clip(0))
    expected = (features.mean(0) ** 2).sum() + ((scales - 1) ** 2).sum()  # the other covariance is the identity
    assert found["fid"] == pytest.approx(expected, rel=1e-4)
    assert found["sfid"] is not None
    assert found["kid"] is found["precision"] is None
    assert [note for note in found["notes"] if "0.01 to 0.1" in note]
    assert [note for note in found["notes"] if "No KID" in note]


def test_statistics_serve_the_frechet_distance_and_pictures_the_rest(place, evaluate) -> None:
    np.savez(place / "both.npz", mu=np.zeros(2048, ">f8"), sigma=np.zeros((2048, 2048)), arr_0=pictures(2)[:6])
    found, features = evaluate("run", "--reference", "both.npz"), load_features(place / "run")
    assert found["fid"] == pytest.approx((features.mean(0) ** 2).sum() + np.trace(np.cov(features.T)), rel=1e-4)
    assert found["sfid"] is None
    assert [note for note in found["notes"] if "No sFID" in note]
    assert found["kid_subset_size"] == 3
    assert 0 <= found["precision"] <= 1


def load_features(run: Path) -> NDArray[np.float64]:
    from safetensors.numpy import load_file

    files = sorted((run / "evaluation" / "features").glob("*/*.safetensors"))
    return np.concatenate([load_file(file)["pool"] for file in files]).astype(np.float64)


def test_what_is_damaged_or_changed_is_looked_at_again(place, inception, seen) -> None:
    network = load_inception(inception)

    def looked(where: str) -> Features:
        with opened(Path(where)) as there:
            return features_of(there, network, lambda count: None, lambda text: None)

    before = looked("run")
    assert seen == []
    files = sorted((place / "run" / "evaluation" / "features").glob("*/*"))
    files[0].write_bytes(files[0].read_bytes()[:-1] + b"x")
    files[1].unlink()
    after = looked("run")
    assert seen == [8, 8]
    torch.testing.assert_close(after.pool, before.pool)
    np.savez(place / "real.npz", arr_0=pictures(2)[:4])
    assert len(looked("real.npz").pool) == 4
    assert seen == [8, 8, 4]
    looked("real.npz")
    assert seen == [8, 8, 4]
    # Of other weights nothing that is kept is of use.
    looked_by_another = dataclasses.replace(network, sha256="0" * 64)
    with opened(Path("real.npz")) as there:
        features_of(there, looked_by_another, lambda count: None, lambda text: None)
    assert seen == [8, 8, 4, 4]


def test_features_are_used_where_they_cannot_be_kept(place, inception) -> None:
    write_pngs(place / "flat", pictures(2)[:3])
    (place / "flat-evaluation").write_text("in the way")
    said: list[str] = []
    with opened(place / "flat") as there:
        found = features_of(there, load_inception(inception), lambda count: None, said.append)
    assert found.pool.abs().sum() > 0
    assert len(said) == 1
    assert said[0].startswith("Features are not kept for the next time:")


def test_pictures_are_the_same_wherever_they_lie(place) -> None:
    """In a folder, in folders of classes, in a zip, as one split of several, in an npz, in a run."""
    rows = pictures(2)[:6]
    write_pngs(place / "flat", rows)
    write_pngs(place / "set" / "train" / "all", pictures(4, 2))
    write_pngs(place / "set" / "test" / "all", rows)
    with zipfile.ZipFile(place / "set.zip", "w") as archive:
        for path in sorted((place / "set").rglob("*.png")):
            archive.write(path, path.relative_to(place))
    np.savez(place / "rows.npz", rows)
    write_run(place / "six", rows)
    for where in ("flat", "set", "set.zip", "rows.npz", "six"):
        with opened(place / where) as there:
            assert (there.count, there.size) == (6, (16, 20))
            assert place / "flat" not in (there.kept, *there.kept.parents)  # whose files others count as samples
            np.testing.assert_array_equal(np.concatenate([chunk.read() for chunk in there.chunks()]), rows)
    with opened(place / "set", split="train") as there:
        assert there.count == 2


def test_pictures_are_never_all_in_memory(tmp_path) -> None:
    np.savez(tmp_path / "many.npz", arr_0=np.zeros((4000, 64, 64, 3), np.uint8))  # 49 MB
    seen = 0
    with opened(tmp_path / "many.npz") as there:
        tracemalloc.start()
        for chunk in there.chunks():
            seen += len(chunk.read())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert seen == 4000
    assert peak < 8e6


def test_a_run_and_an_npz_of_the_same_labels_are_pairs(place) -> None:
    np.savez(place / "same.npz", arr_0=pictures(1), arr_1=np.arange(COUNT, dtype=np.int32) % 4)
    with opened(place / "run") as ours, opened(place / "same.npz") as theirs:
        check_pairs(ours, theirs)
        check_pairs(theirs, ours)


def test_pairs_of_samplers(place, cli, inception) -> None:
    brighter = np.minimum(pictures(1).astype(int) + 9, 255).astype(np.uint8)
    write_run(place / "other", brighter, dataclasses.replace(IDENTITY, schedule_sha256="c" * 64))
    ran = cli("evaluate", "run", "-r", "real.npz", "--against", "other", "--inception", inception)
    assert ran.code == 0
    (file,) = (place / "run" / "evaluation").glob("real-*-against-other-*.json")
    assert f"Made: {file.relative_to(place)}" in ran.out
    assert "Next: ddt-accel bench" in ran.out
    found = read_json(file, FORMAT, VERSION)
    ours, theirs = (gaussian_of(torch.from_numpy(load_features(place / name))) for name in ("run", "other"))
    assert found["against"]["fid_between"] == pytest.approx(frechet_distance(ours, theirs))
    for told in (f"{found['fid']:.3f}", f"{found['against']['fid']:.3f}", f"{found['against']['fid_between']:.3f}"):
        assert told in ran.out
    difference = found["against"]["difference"]
    assert difference["value"] == pytest.approx(found["fid"] - found["against"]["fid"])
    assert difference["low"] < difference["value"] < difference["high"]
    told = cli("inspect", file).out
    assert "evaluation" in told
    assert "fid" in told
    features = next((place / "run" / "evaluation" / "features").glob("*/*"))
    assert "float32 [8, 2048]" in cli("inspect", features).out


def test_references_of_one_name_do_not_replace_each_other_s_results(place, cli, inception) -> None:
    (place / "elsewhere").mkdir()
    np.savez(place / "elsewhere" / "real.npz", arr_0=pictures(5))
    for reference in ("real.npz", "elsewhere/real.npz", "real.npz"):
        assert cli("evaluate", "run", "-r", reference, "--inception", inception).code == 0
    results = list((place / "run" / "evaluation").glob("real-*.json"))
    assert len({read_json(file, FORMAT, VERSION)["fid"] for file in results}) == len(results) == 2


def test_what_cannot_be_evaluated(place, cli, inception) -> None:
    rows = pictures(1)
    Image.fromarray(rows[0]).save(place / "one.png")
    write_run(place / "begun", rows, finished=16)
    run = RunFolder.begun(place / "latents", IDENTITY, 8, 8)
    run.write(Images(first=0, rows=np.zeros((8, 4, 2, 2), np.float32), labels=np.zeros(8, np.int64)), {})
    np.savez(place / "large.npz", arr_0=pictures(2, 3, (32, 32)))
    np.savez(place / "floats.npz", arr_0=rows / 255)
    np.savez(place / "labels.npz", arr_0=rows, arr_1=np.arange(3))
    np.savez(place / "fewer.npz", arr_0=rows[:5])
    np.savez(place / "turned.npz", arr_0=rows, arr_1=np.arange(COUNT)[::-1] % 4)
    np.savez(place / "vit.npz", mu=np.zeros(768), sigma=np.eye(768))
    np.savez(place / "vast.npz", mu=np.full(2048, 1e200), sigma=np.zeros((2048, 2048)))
    (place / "cut.npz").write_bytes((place / "real.npz").read_bytes()[:-100])
    write_pngs(place / "mixed", rows[:2])
    Image.fromarray(rows[0, :8]).save(place / "mixed" / "9.png")
    write_run(place / "seeded", rows, dataclasses.replace(IDENTITY, seed=7))
    (place / "empty").mkdir()
    for line, said in {
        ("run",): "--reference is missing; give ",
        ("run", "-r", "nowhere"): "ADM's npz, or an npz, a folder or a zip of pictures",
        ("nowhere", "-r", "real.npz"): "There is no nowhere; give a run's folder",
        ("one.png", "-r", "real.npz"): "one.png is a single picture",
        ("begun", "-r", "real.npz"): "begun holds 16 of the run's 24 images; finish it",
        ("latents", "-r", "real.npz"): "latents, not pictures",
        ("run", "-r", "large.npz"): "run has pictures of 20 × 16 pixels, and large.npz of 32 × 32",
        ("floats.npz", "-r", "run"): "expected arr_0, uint8 [M, H, W, 3]",
        ("labels.npz", "-r", "run"): "labels arr_1 int64 [3]",
        ("run", "-r", "vit.npz"): "vit.npz has mu [768] and sigma [768, 768]",
        ("run", "-r", "vast.npz"): "vast.npz has values in mu or sigma that are no finite numbers",
        ("cut.npz", "-r", "run"): "cut.npz cannot be read",
        ("empty", "-r", "run"): "empty has no pictures",
        ("mixed", "-r", "run"): "9.png in mixed has 20 × 8 pixels, and the first picture there 20 × 16",
        ("run", "-r", "real.npz", "--against", "fewer.npz"): "run has 24 pictures and fewer.npz 5",
        ("run", "-r", "real.npz", "--against", "turned.npz"): "turned.npz has other labels than run",
        ("run", "-r", "real.npz", "--against", "seeded"): "seeded was drawn with --seed 7, and run with 0",
        ("run", "-r", "real.npz", "--out", "/dev/null/x"): "could not be written",
    }.items():
        assert_sentence(cli("evaluate", *line, "--inception", inception), said)
    assert_sentence(cli("evaluate", "run", "-r", "real.npz", "--inception", place / "run" / "run.json"), "PyTorch")


@pytest.mark.parametrize("name", shipped_statistics())
def test_shipped_statistics(place, cli, inception, name) -> None:
    """They are of one network, and of pictures of a size; a covariance has no negative eigenvalues to speak of."""
    found = Statistics.load(shipped_statistics()[name])
    assert (found.count, found.size) == (10_000, (32, 32))
    for gaussian in (found.pool, found.spatial):
        assert gaussian is not None
        eigenvalues = torch.linalg.eigvalsh(gaussian.covariance)
        assert eigenvalues[0] > -1e-4 * eigenvalues[-1]
    np.savez(place / "small.npz", arr_0=pictures(2, 3, (32, 32)))
    line = ["evaluate", "small.npz", "-r", name, "--inception", inception]
    assert_sentence(cli(*line), "cifar10 has statistics of another feature network")


def test_other_weights_are_refused(tmp_path) -> None:
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "torchvision.pth")
    with pytest.raises(CheckpointError, match="tells 1000 classes"):
        load_inception(tmp_path / "torchvision.pth")
    torch.save({"fc.weight": torch.zeros(1008, 2048), "Conv2d_1a_3x3.conv.weight": 1}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="has no Conv2d_1a_3x3"):
        load_inception(tmp_path / "other.pth")


def test_statistics_of_other_networks_are_refused(inception) -> None:
    network = load_inception(inception)
    unknown = Gaussian(mean=torch.zeros(2), covariance=torch.eye(2))
    Statistics(pool=unknown, spatial=None, network=None).check_network(network, "x")
    Statistics(pool=unknown, spatial=None, network=network.sha256).check_network(network, "x")
    with pytest.raises(ConfigError, match="uint8"):
        network.features(np.zeros((2, 8, 8, 3), np.float32))
