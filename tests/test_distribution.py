"""Distances between sets of pictures, against closed forms, other people's square roots, and counting."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import scipy.linalg
import torch

from ddt_accel.errors import ConfigError, DependencyError
from ddt_accel.evaluation.distribution import NEIGHBOURS, PACKAGE, Inception, coverage, frechet_distance


def drawn(count: int, size: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(size, size, generator=generator)
    return torch.randn(count, size, generator=generator) @ mixed + torch.randn(size, generator=generator)


@pytest.mark.parametrize(("ours", "theirs"), [(200, 300), (50, 40), (4, 5)])
def test_frechet_distance_is_that_of_the_square_root(ours: int, theirs: int) -> None:
    a, b = drawn(ours, seed=1), drawn(theirs, seed=2)
    first, second = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(first + second - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-3)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


def test_frechet_distance_knows_shifts_and_scales() -> None:
    """Of a set and itself moved: the move; of a set and itself scaled: the difference of the standard deviations."""
    a = drawn(500)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(a, a + 2) == pytest.approx(4 * a.shape[1], rel=1e-5)
    centred = a - a.mean(0)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * a.var(0).sum().item(), rel=1e-4)


def test_coverage_counts_who_lies_within_whose_neighbourhood() -> None:
    a, b = drawn(40, 3, seed=1).double(), drawn(40, 3, seed=1).double()[:30] * 1.5 + 0.2

    def share(points: torch.Tensor, centres: torch.Tensor) -> float:
        inside = 0
        for point in points:
            for j, centre in enumerate(centres):
                others = sorted(float((centre - other).norm()) for i, other in enumerate(centres) if i != j)
                if float((point - centre).norm()) <= others[NEIGHBOURS - 1]:
                    inside += 1
                    break
        return inside / len(points)

    found = coverage(a, b)
    assert found.precision == pytest.approx(share(a, b))
    assert found.recall == pytest.approx(share(b, a))
    assert 0 < found.recall < 1
    far = coverage(a, b + 1000)
    assert (far.precision, far.recall) == (0, 0)


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        frechet_distance(drawn(1), drawn(9))
    with pytest.raises(ConfigError, match="give more"):
        coverage(drawn(3), drawn(9))


def test_the_network_of_the_extra() -> None:
    if importlib.util.find_spec(PACKAGE) is None:
        with pytest.raises(DependencyError, match=r"ddt-accel\[fid\]"):
            Inception()
        pytest.skip("the extra `fid` is not installed")
    pictures = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    network = Inception()
    features = network.features(pictures, batch_size=2)
    assert features.shape == (5, 2048)
    torch.testing.assert_close(network.features(pictures[3:]), features[3:], atol=1e-3, rtol=1e-3)
    assert (features[0] - features[1]).abs().max() > 0.01
    with pytest.raises(ConfigError, match="uint8"):
        network.features(pictures.astype(np.float32))
