"""The refresh steps of rivals: against all sets of steps, published lists, and their programs written out."""

from __future__ import annotations

from itertools import combinations, pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from ddt_accel import SamplingSpec, Schedule
from ddt_accel.rivals import published, soda, teacache
from ddt_accel.rivals.cem import cumulative_errors, nearly_even_path
from ddt_accel.rivals.dpcache import one_parent
from ddt_accel.rivals.lemica import minimax_path
from ddt_accel.rivals.magcache import within
from ddt_accel.rivals.path import least_worst
from ddt_accel.rivals.rival import bisected
from ddt_accel.rivals.spectrum import dense_early

N = 9


def sets(runs: int) -> list[tuple[int, ...]]:
    """All sets of so many refresh steps."""
    return [(0, *rest) for rest in combinations(range(1, N), runs - 1)]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).uniform(size=shape)


def statistics_of(states: np.ndarray) -> SimpleNamespace:
    """Of one image of one token, whose states these are."""
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    return SimpleNamespace(
        spec=SamplingSpec(num_steps=len(states)), gram=states @ states.T, similarity=unit @ unit.T,
        checkpoint_sha256="a" * 64, guide=None, sha256="b" * 64,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("growth", "expected"),
    [
        (0.25, [0, 1, 2, 3, 4, 6, 8, 10, 12, 15, 18, 21, 24, 28, 32, 36, 40, 45]),
        (0.75, [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46]),
        (1.5, [0, 1, 2, 3, 4, 6, 9, 14, 20, 28, 37, 48]),
        (3.0, [0, 1, 2, 3, 4, 6, 11, 19, 30, 44]),
    ],
)
def test_spectrum_is_as_dense_as_published(growth, expected) -> None:
    assert list(dense_early(50, growth)) == expected


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_lemica_is_the_first_in_the_dictionary(last, whole) -> None:
    """Of all sets, also where whole weights tie."""
    weights = np.full((N, N + 1), np.inf)
    above = np.triu_indices(N, 1, N + 1)
    weights[above] = np.round(4 * random(len(above[0]))) if whole else random(len(above[0]))

    def worst_first(steps: tuple[int, ...]) -> list[float]:
        return sorted((weights[edge] for edge in pairwise(steps if last else (*steps, N))), reverse=True)

    table = least_worst(weights)
    for runs in range(2, N + 1):
        found = minimax_path(table, runs, last=last)
        assert found is not None
        assert len(found) == runs
        candidates = [steps for steps in sets(runs) if not last or steps[-1] == N - 1]
        assert worst_first(found) == min(map(worst_first, candidates))
    assert minimax_path(table, 1, last=last) == (None if last else (0,))


def dpcache_by_its_recursion(costs: np.ndarray, runs: int, first: int, longest: int) -> tuple[int, ...]:
    """D and P as the paper has them, over numbers of refreshes and steps."""
    least = {(first, first - 1): 0.0}
    parent = {(m, m - 1): max(m - 2, 0) for m in range(1, first + 1)}
    for m in range(first + 1, runs + 2):
        for k in range(m - 1, N + 1):
            found = [
                (least[m - 1, j] + costs[parent[m - 1, j], j, k], j)
                for j in range(max(0, k - longest), k)
                if (m - 1, j) in least
            ]
            if found:
                least[m, k], parent[m, k] = min(found)
    steps, k = [], N
    for m in range(runs + 1, first, -1):
        k = parent[m, k]
        steps.append(k)
    return (*range(first - 1), *reversed(steps))


def test_dpcache_keeps_one_parent() -> None:
    costs = random(N, N, N + 1)
    for runs, longest in ((4, 4), (5, 3), (6, 2), (7, 2), (9, 2)):
        assert one_parent(costs, runs) == dpcache_by_its_recursion(costs, runs, 3, longest)
    assert [one_parent(costs, runs) for runs in (1, 2, 3)] == [(0,), (0, 1), (0, 1, 2)]


def test_dpcache_is_exact_where_one_refresh_decides() -> None:
    costs = np.broadcast_to(random(N, N + 1), (N, N, N + 1))
    for runs, longest in ((4, 4), (5, 3), (6, 2)):
        candidates = [
            steps
            for steps in sets(runs)
            if steps[:3] == (0, 1, 2) and max(np.diff((*steps, N))) <= longest
        ]  # fmt: skip
        expected = min(candidates, key=lambda steps: sum(costs[0][edge] for edge in pairwise((*steps[2:], N))))
        assert one_parent(costs, runs) == expected


def test_cem_is_the_least_of_nearly_even_paths() -> None:
    error = np.triu(random(N, N), 1)
    cumulative = cumulative_errors(error)
    for n in range(N):
        for t in range(N):
            summed = sum(error[s - n, s] for s in range(n, t + 1))
            np.testing.assert_allclose(cumulative[n, t], n**2 * summed)
    for runs in range(2, N + 1):
        usual = round(N / runs)
        ending = [steps for steps in sets(runs) if steps[-1] == N - 1]
        for band in range(1, N):  # the first that has a path
            even = [steps for steps in ending if all(abs(b - a - usual) <= band for a, b in pairwise(steps))]
            if even:
                break
        expected = min(even, key=lambda steps: sum(cumulative[b - a - 1, b] for a, b in pairwise(steps)))
        assert nearly_even_path(cumulative, runs) == expected


def test_soda_and_ddt_serve_from_what_is_most_alike() -> None:
    statistics = statistics_of(np.cumsum(np.random.default_rng(6).normal(size=(N, 12)), axis=0))

    def cost(steps: tuple[int, ...]) -> float:
        served = [max(step for step in steps if step <= k) for k in range(N)]
        return sum(1 - statistics.similarity[j, k] for k, j in enumerate(served))

    uniform, program = published.variants(statistics)
    for runs in range(1, N + 1):
        expected = min(sets(runs), key=cost)
        held = program.of(runs)
        assert held.refresh_steps == expected
        assert not held.forecasts
        assert {variant.of(runs).refresh_steps for variant in soda.variants(statistics)} == {expected}
        assert uniform.of(runs).refresh_steps == Schedule.uniform(statistics.spec, runs).refresh_steps


def test_teacache_by_hand() -> None:
    changes = np.array([0, 0.25, 0.25, 0.5, 0.125, 0.125, 0.25])
    assert teacache.adding_up(changes, 0.5) == (0, 2, 3, 6)
    assert teacache.adding_up(changes, 2.0) == (0, 6)
    gram = np.diag([4.0, 9.0, 9.0])
    gram[0, 1] = gram[1, 0] = 2.0
    np.testing.assert_allclose(teacache.relative_changes(gram), [0, np.sqrt(9 + 4 - 4) / 2, np.sqrt(18) / 3])


def test_thresholds_are_bisected_to_the_wanted_runs() -> None:
    """The set of steps changes only at sums of consecutive changes: all of them are tried."""
    changes = np.append(0, random(N - 1))
    thresholds = [0.0, *(changes[a:b].sum() for a in range(N) for b in range(a + 1, N + 1))]
    every = {teacache.adding_up(changes, threshold) for threshold in thresholds}
    for runs in range(2, N + 1):
        expected = max(len(steps) for steps in every if len(steps) <= runs)
        found = bisected(lambda threshold: teacache.adding_up(changes, threshold), runs, 100.0)
        assert found is not None
        assert len(found) == expected
    assert bisected(lambda threshold: teacache.adding_up(changes, threshold), 1, 100.0) is None


def test_magcache_is_its_products_of_ratios() -> None:
    norms = 1 + random(20)
    ratios = norms[1:] / norms[:-1]
    for threshold, always, longest in ((0.3, 1, 20), (0.8, 3, 3), (2.0, 2, 2), (0.0, 1, 5)):
        steps, product, skipped, error = [0], 1.0, 0, 0.0
        for step in range(1, 20):
            product, skipped = product * ratios[step - 1], skipped + 1
            error += abs(1 - product)
            if step < always or error > threshold or skipped > longest:
                steps.append(step)
                product, skipped, error = 1.0, 0, 0.0
        assert within(norms, threshold, always, longest) == tuple(steps)
