"""Distances between sets of features, against closed forms, brute force, and what torch-fidelity has computed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from ddt_accel.distribution.bootstrap import influences, paired_difference
from ddt_accel.distribution.frechet import Gaussian, Moments, frechet_distance, gaussian_of
from ddt_accel.distribution.inception_score import inception_score
from ddt_accel.distribution.kernel import kernel_distance, squared_mean_discrepancy
from ddt_accel.distribution.neighbours import NEIGHBOURS, coverage
from ddt_accel.distribution.statistics import Statistics
from ddt_accel.errors import ConfigError


def drawn(count: int, size: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(size, size, generator=generator)
    return torch.randn(count, size, generator=generator) @ mixed + torch.randn(size, generator=generator)


def frechet(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return frechet_distance(gaussian_of(ours), gaussian_of(theirs))


@pytest.fixture(scope="module")
def known() -> tuple[torch.Tensor, torch.Tensor]:
    """Features that the numbers of torch-fidelity 0.4.0 below are of: of its functions `*_features_to_metric`."""
    generator = np.random.default_rng(3)
    ours = torch.from_numpy(generator.standard_normal((300, 24), np.float32))
    return ours, torch.from_numpy(1.2 * generator.standard_normal((250, 24), np.float32) + np.float32(0.3))


@pytest.mark.parametrize(("ours", "theirs"), [(200, 300), (50, 40), (4, 5)])
def test_frechet_distance_is_that_of_the_square_root(ours: int, theirs: int) -> None:
    a, b = drawn(ours, seed=1), drawn(theirs, seed=2)
    first, second = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(first + second - 2 * root)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-3)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-6)


def test_frechet_distance_in_closed_form() -> None:
    """Of Gaussians with the same axes: the means' distance, and that of the standard deviations."""
    axes = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    first, second = torch.tensor([4.0, 1.0, 0.25, 9.0, 0.0]).double(), torch.tensor([1.0, 1.0, 4.0, 0.0, 0.0]).double()
    means = torch.arange(5.0).double(), torch.ones(5).double()
    one, other = (
        Gaussian(mean=mean, covariance=axes * variances @ axes.T)
        for mean, variances in zip(means, (first, second), strict=True)
    )
    expected = (means[0] - means[1]).square().sum() + (first.sqrt() - second.sqrt()).square().sum()
    assert frechet_distance(one, other) == pytest.approx(float(expected), rel=1e-9)


def test_frechet_distance_knows_shifts_and_scales() -> None:
    """Of a set and itself moved: the move; of a set and itself scaled: the difference of the standard deviations."""
    a = drawn(500)
    assert frechet(a, a) == pytest.approx(0, abs=1e-5)
    assert frechet(a, a + 2) == pytest.approx(4 * a.shape[1], rel=1e-5)
    centred = a - a.mean(0)
    assert frechet(centred, 3 * centred) == pytest.approx(4 * a.var(0).sum().item(), rel=1e-4)


def test_moments_do_not_depend_on_parts_and_keep_their_digits() -> None:
    rows = drawn(100).double() + 1e6
    moments = Moments()
    for part in rows.split(7):
        moments.add(part)
    found = moments.gaussian()
    torch.testing.assert_close(found.mean, rows.mean(0))
    torch.testing.assert_close(
        found.covariance, torch.from_numpy(np.cov(rows.numpy(), rowvar=False)), rtol=1e-8, atol=0
    )


@pytest.mark.parametrize(("count", "few"), [(2, True), (5, True), (6, False), (9, False)])
def test_few_rows_vary_along_the_axes_of_their_covariance(count: int, few: bool) -> None:
    moments = Moments()
    for part in drawn(count).split(2):
        moments.add(part)
    found = moments.gaussian()
    assert (found.factor is not None) == few
    (ours, axes), (expected, others) = found.spectrum, dataclasses.replace(found, factor=None).spectrum
    assert len(ours) == min(count - 1, 6)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(axes * ours @ axes.T, others * expected @ others.T)


def test_kid_is_the_u_statistic() -> None:
    a, b = drawn(9, seed=1).double(), drawn(7, seed=2).double()

    def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        return (float(x @ y) / a.shape[1] + 1) ** 3

    def pairs(rows: torch.Tensor) -> list[float]:
        return [kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]

    expected = np.mean(pairs(a)) + np.mean(pairs(b)) - 2 * np.mean([kernel(x, y) for x in a for y in b])
    assert squared_mean_discrepancy(a, b) == pytest.approx(expected, rel=1e-9)


def test_inception_score_of_what_is_known() -> None:
    """Nothing told: 1. Each picture surely of a class, all as often: the number of classes."""
    assert inception_score(torch.zeros(20, 8)).mean == pytest.approx(1)
    sure = 1000 * torch.eye(4).repeat(50, 1)
    assert inception_score(sure, splits=1).mean == pytest.approx(4)
    assert inception_score(sure, splits=1).deviation == 0


def test_figures_are_those_of_torch_fidelity(known) -> None:
    ours, theirs = known
    assert frechet(ours, theirs) == pytest.approx(3.803928713904142, rel=1e-6)
    kid = kernel_distance(ours, theirs, subset_size=100)
    assert (kid.mean, kid.deviation) == pytest.approx((0.2526789617538452, 0.052872864500175865), rel=1e-5)
    score = inception_score(2 * ours)
    assert (score.mean, score.deviation) == pytest.approx((3.1795134684248127, 0.1820636505864794), rel=1e-6)
    near = coverage(ours, theirs)
    assert (near.precision, near.recall) == pytest.approx((0.9733333587646484, 0.31200000643730164), rel=1e-6)


def test_figures_are_those_that_torch_fidelity_computes_here(known) -> None:
    pytest.importorskip("torch_fidelity", exc_type=(ImportError, RuntimeError))
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    found = kid_features_to_metric(*known, kid_subset_size=60, verbose=False)
    kid = kernel_distance(*known, subset_size=60)
    assert kid.mean == pytest.approx(found["kernel_inception_distance_mean"], rel=1e-3)
    assert coverage(*known).recall == pytest.approx(prc_features_to_metric(*known, verbose=False)["recall"])


def test_coverage_counts_who_lies_within_whose_neighbourhood(monkeypatch) -> None:
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
    monkeypatch.setattr("ddt_accel.distribution.neighbours._DISTANCES", 70)  # a few rows at a time
    assert coverage(a, b) == found
    far = coverage(a, b + 1000)
    assert (far.precision, far.recall) == (0, 0)


@pytest.mark.parametrize("count", [40, 5])
def test_influences_are_derivatives(count: int) -> None:
    """Of the distance by a picture's weight, which is nudged; also where there are fewer pictures than features."""
    a, b = drawn(count, seed=1).double(), drawn(30, seed=2).double()

    def weighted(rows: torch.Tensor, index: int, more: float) -> Gaussian:
        weights = torch.full((len(rows),), 1 / len(rows)).double()
        weights[index] += more
        weights /= weights.sum()
        mean = weights @ rows
        centred = rows - mean
        return Gaussian(mean=mean, covariance=centred.T * weights @ centred * len(rows) / (len(rows) - 1))

    found = influences(a, gaussian_of(b), b)
    assert found.distance == pytest.approx(frechet(a, b))
    assert found.reference is not None
    nudge = 1e-6
    for index in range(4):
        moved = frechet_distance(weighted(a, index, nudge), gaussian_of(b)) - found.distance
        assert found.drawn[index] == pytest.approx(moved / nudge, rel=1e-3)
        moved = frechet_distance(gaussian_of(a), weighted(b, index, nudge)) - found.distance
        assert found.reference[index] == pytest.approx(moved / nudge, rel=1e-3)


@pytest.mark.parametrize(("count", "size"), [(300, 5), (40, 60)])
def test_intervals_are_as_wide_as_differences_vary(count: int, size: int) -> None:
    """Of noises and references drawn anew; also where there are fewer pictures than features."""
    scales = torch.arange(1, size + 1).double() ** -0.7

    def sets(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        noise, other, real = (torch.randn(count, size, generator=generator).double() * scales for _ in range(3))
        return noise, 1.1 * noise + 0.2 * other + 0.1 * scales, 0.8 * real

    def difference(a: torch.Tensor, b: torch.Tensor, real: torch.Tensor) -> float:
        return frechet(a, real) - frechet(b, real)

    anew = np.std([difference(*sets(seed)) for seed in range(100, 350)])
    widths = []
    for seed in range(20):
        a, b, real = sets(seed)
        found = paired_difference(*(influences(one, gaussian_of(real), real) for one in (a, b)))
        assert found.value == pytest.approx(difference(a, b, real))
        widths.append((found.high - found.low) / (2 * 1.96))
    assert np.mean(widths) == pytest.approx(anew, rel=0.15)
    fixed = paired_difference(*(influences(one, gaussian_of(real)) for one in (a, b)))
    assert fixed.high - fixed.low < found.high - found.low  # nothing of the reference is resampled


def test_statistics_keep_what_matters_in_half_of_the_space(tmp_path: Path) -> None:
    a, b = drawn(400, 40, seed=1), drawn(400, 40, seed=2)
    kept = Statistics(pool=gaussian_of(a), spatial=gaussian_of(b), network="x", size=(8, 9), count=400)
    kept.save(tmp_path / "s.safetensors")
    found = Statistics.load(tmp_path / "s.safetensors")
    assert (found.network, found.size, found.count) == ("x", (8, 9), 400)
    assert found.spatial is not None
    expected = frechet(a, b)
    assert frechet_distance(found.pool, found.spatial) == pytest.approx(expected, rel=1e-3)
    assert frechet_distance(found.pool, kept.pool) < 1e-3 * expected


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        frechet(drawn(1), drawn(9))
    with pytest.raises(ConfigError, match="give more"):
        coverage(drawn(3), drawn(9))
    with pytest.raises(ConfigError, match="at least 4 of each"):
        kernel_distance(drawn(1), drawn(9))
    with pytest.raises(ConfigError, match="at least 10"):
        inception_score(drawn(9))
    pulls = [influences(drawn(count), gaussian_of(drawn(9, seed=1))) for count in (8, 9)]
    with pytest.raises(ConfigError, match="no pairs"):
        paired_difference(*pulls)
    with pytest.raises(ConfigError, match="at least 1000"):
        paired_difference(pulls[0], pulls[0], resamples=9)
