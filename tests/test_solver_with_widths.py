"""Widths of encoder and decoder within one total, against brute force over every assignment."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest

from ddt_accel import SamplingSpec, Schedule, solve
from ddt_accel.comparison.ours import Solved
from ddt_accel.errors import ConfigError
from ddt_accel.sampling.program import branch_work, compile_program
from ddt_accel.solver.decoders import effect_of, solve_decoders
from ddt_accel.solver.misses import WAYS, Misses
from ddt_accel.solver.solve import GAMMA, PUBLISHED, Method, schedule_with, solve_curve, solve_runs
from ddt_accel.solver.width_statistics import WidthStatistics
from ddt_accel.solver.widths import refreshes_cost, width_prices
from ddt_accel.solver.with_widths import decoder_prices, schedule_with_widths, solve_with_widths

WIDTHS = (1.0, 0.75, 0.5)
M = 7


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """Statistics of random states: narrow encoders see the complete ones' with independent noise."""

    spec: SamplingSpec
    similarity: np.ndarray
    gram: np.ndarray
    mean_gram: np.ndarray
    sensitivity: np.ndarray | None
    widths: WidthStatistics | None
    mean_modulations: np.ndarray
    misses: Misses
    modulation_bias: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(M, np.float32))
    branch_grams: np.ndarray | None = None
    guide: None = None
    checkpoint_sha256: str = "0"
    sha256: str = "1"


def made(n: int, seed: int = 0, *, noise: float = 0.1, effect: float = 0.02, miss: float = 1.0, **spec) -> Made:
    rng = np.random.default_rng(seed)
    times = np.linspace(0, 1, n)
    complete = np.stack([np.cos(2 * k * times) for k in range(3)], axis=1) @ rng.normal(size=(3, 500))
    complete += 0.02 * rng.normal(size=complete.shape)
    gram = np.kron(complete @ complete.T / 500, np.ones((3, 3))) + np.diag([(noise * w) ** 2 for w in range(3)] * n)
    ends = rng.normal(size=(n, 1, 200)) * effect + 0.3 * effect * rng.normal(size=(n, 2, 200))
    ends *= np.array([1.0, 3.0])[:, None]
    flat = ends.reshape(2 * n, -1)
    return Made(
        spec=SamplingSpec(num_steps=n, **({"guidance": 1.0} | spec)),
        similarity=np.ones((n, n)),
        gram=gram[::3, ::3] + 1.0,
        mean_gram=np.ones((n, n)),
        sensitivity=0.5 + rng.random(n),
        widths=WidthStatistics(
            widths=WIDTHS,
            gram=gram.reshape(n, 3, n, 3),
            mean_modulations=rng.normal(size=(n, 2, M)).astype(np.float32),
            effects=(flat @ flat.T / flat.shape[1]).reshape(n, 2, n, 2),
            misses=Misses(runs=np.array([1.0]), ratios=np.full((len(WAYS), 1), miss)),
        ),
        mean_modulations=rng.normal(size=(n, M)).astype(np.float32),
        misses=Misses(runs=np.array([1.0]), ratios=np.full((len(WAYS), 1), miss)),
    )


def every_encoder(n: int) -> list[tuple[tuple[int, int], ...]]:
    return [
        tuple(zip((0, *steps), widths, strict=True))
        for runs in range(1, n + 1)
        for steps in itertools.combinations(range(1, n), runs - 1)
        for widths in itertools.product(range(3), repeat=runs)
    ]


@pytest.mark.parametrize("objective", ["sum", "power"])
@pytest.mark.parametrize("interval", [None, (0.4, 1.0), (0.2, 0.6)])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_best_of_all_assignments(objective: str, interval: tuple[float, float] | None, seed: int) -> None:
    """Of whole costs, so that rounding loses nothing, counted as schedules run."""
    n, gamma = 4, GAMMA[objective]
    statistics = made(n, seed, **({"guidance": 2.0, "guidance_interval": interval} if interval else {}))
    encoder, decoder = [8.0, 6.0, 4.0], [4.0, 3.0, 2.0]
    branches = np.where(statistics.spec.guidance_weights != 1, 2, 1)
    assert set(branches) == ({1, 2} if interval else {1})
    prices, alone = width_prices(statistics.widths.gram, statistics.sensitivity), decoder_prices(statistics.widths)
    sets = [
        (
            spent_on(schedule_with_widths(statistics, one, [0] * n), encoder, [0.0] * 3),
            refreshes_cost(prices, one, gamma=gamma),
        )
        for one in every_encoder(n)
    ]
    assignments = [
        (sum(b * decoder[w] for b, w in zip(branches, one, strict=True)), alone[range(n), one])
        for one in itertools.product(range(3), repeat=n)
    ]
    both = [
        (spent + also, (cost**gamma + (effects**gamma).sum()) ** (1 / gamma))
        for (spent, cost), (also, effects) in itertools.product(sets, assignments)
    ]
    complete = [
        (spent + branches.sum() * decoder[0], cost)
        for (spent, cost), one in zip(sets, every_encoder(n), strict=True)
        if not any(width for _, width in one)
    ]
    narrow = set()
    for total in (14, 18, 24, 31, 40, 52, 70, 100):
        within = [cost for spent, cost in both if spent <= total]
        if not within:
            with pytest.raises(ConfigError, match=f"A total of {total} is less than any schedule costs"):
                solve_with_widths(statistics, total, encoder, decoder, objective=objective)
            continue
        schedule, certificate = solve_with_widths(statistics, total, encoder, decoder, objective=objective)
        assert certificate.cost == pytest.approx(min(within), rel=1e-9, abs=1e-12)
        assert schedule.predicted_cost == pytest.approx(certificate.cost, rel=1e-6, abs=1e-9)
        assert certificate.considered == len(within)
        assert certificate.spent == pytest.approx(spent_on(schedule, encoder, decoder))
        assert certificate.spent <= total
        without = min((cost for spent, cost in complete if spent <= total), default=None)
        assert certificate.complete_cost == (without and pytest.approx(without, rel=1e-9, abs=1e-12))
        narrow |= {*schedule.encoder_widths.values(), *schedule.decoder_widths.values()}
    assert narrow == {0.75, 0.5}


def spent_on(schedule: Schedule, encoder: list[float], decoder: list[float]) -> float:
    """What the runs of its program take, in both branches."""
    return sum(
        price[WIDTHS.index(width)] * runs
        for work in branch_work(compile_program(schedule))
        for price, made in ((encoder, work.encoded_at), (decoder, work.decoded_at))
        for width, runs in made.items()
    )


@pytest.mark.parametrize("budget", [1, 3, 7, 12])
def test_where_narrow_costs_as_much_it_is_what_solve_gives(budget: int) -> None:
    statistics = made(12, miss=1.7)
    total = budget * 5.0 + 12 * 2.0
    schedule, certificate = solve_with_widths(statistics, total, [5.0] * 3, [2.0] * 3)
    plain = solve(statistics, budget)
    assert schedule == plain
    assert (schedule.means == {}) == (budget == 12)
    assert certificate.cost == pytest.approx(certificate.complete_cost, rel=1e-6, abs=1e-12)
    assert certificate.complete_cost == pytest.approx(plain.predicted_cost, rel=1e-9, abs=1e-12)
    assert certificate.spent == total


@pytest.mark.parametrize("seed", range(20))
def test_a_total_is_never_exceeded_and_never_worse_than_complete(seed: int) -> None:
    """Of costs as they come."""
    rng = np.random.default_rng(seed)
    statistics = made(10, seed, guidance=1.5, guidance_interval=(0.3, 1.0))
    encoder, decoder = (sorted(rng.uniform(0.3, 3.0, size=3), reverse=True) for _ in range(2))
    branches = np.where(statistics.spec.guidance_weights != 1, 2, 1)
    for runs in (1, 2.5, 4):
        total = 2 * encoder[0] * runs + branches.sum() * decoder[0]
        schedule, certificate = solve_with_widths(statistics, total, encoder, decoder)
        spent = spent_on(schedule, encoder, decoder)
        assert spent <= certificate.spent * (1 + 1e-9)
        assert certificate.spent <= total * (1 + 1e-9)
        assert certificate.cost <= certificate.complete_cost * (1 + 1e-9)
        assert spent == pytest.approx(certificate.spent, rel=0.02)  # but for rounding
        # As many refreshes, and more where those before anything guided take a branch alone.
        assert certificate.complete_cost <= solve(statistics, int(runs)).predicted_cost * (1 + 1e-9)


def test_schedules_have_the_best_forecasts_and_the_means_they_need() -> None:
    """Weights against least squares in the metric of the Gram matrix; the error of all of it by hand."""
    statistics = made(6, miss=2.0)
    refreshes, decoders = [(0, 2), (2, 0), (4, 1)], [0, 1, 0, 2, 0, 0]
    schedule = schedule_with_widths(statistics, refreshes, decoders)
    assert schedule.refresh_steps == (0, 2, 4)
    assert schedule.encoder_widths == {0: 0.5, 4: 0.75}
    assert schedule.decoder_widths == {1: 0.75, 3: 0.5}
    assert set(schedule.forecasts) == {0, 1, 3, 4, 5}
    narrow = statistics.widths.mean_modulations
    np.testing.assert_array_equal(schedule.narrow_mean_modulations, [narrow[0, 1], narrow[4, 0]])
    np.testing.assert_array_equal(schedule.mean_modulations, statistics.mean_modulations)
    gram = statistics.widths.gram.reshape(18, 18)
    sources = {0: [2], 1: [2], 3: [2, 6], 4: [6, 13], 5: [6, 13]}
    squared = np.zeros(6)
    for step, row in schedule.forecasts.items():
        inner = gram[np.ix_(sources[step], sources[step])]
        weights = np.linalg.solve(inner, gram[sources[step], 3 * step])
        assert [source for source, _ in row] == [place // 3 for place in sources[step]]
        np.testing.assert_allclose([weight for _, weight in row], weights, rtol=1e-3, atol=1e-3)
        squared[step] = gram[3 * step, 3 * step] - weights @ gram[sources[step], 3 * step]
    errors = statistics.sensitivity * np.sqrt(squared)
    segments = errors[:2].sum(), errors[2:4].sum(), errors[4:].sum()
    effects = statistics.widths.effects
    pairs = [(1, 0), (3, 1)]
    quadratic = sum(effects[i, v, j, w] for i, v in pairs for j, w in pairs)
    assert schedule.predicted_error == pytest.approx(math.sqrt(4 * np.square(segments).sum() + quadratic), rel=1e-4)
    alone = sum(math.sqrt(effects[i, v, i, v]) for i, v in pairs)
    assert schedule.predicted_cost == pytest.approx(sum(segments) + alone, rel=1e-4)
    assert effect_of(effects, {1: 1, 3: 2}) == pytest.approx(math.sqrt(quadratic))


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_decoders_are_the_best_for_every_saving(gamma: float) -> None:
    rng = np.random.default_rng(0)
    prices, savings = rng.random((5, 3)), rng.integers(0, 4, size=(5, 3))
    prices[:, 0], savings[:, 0] = 0, 0
    every = list(itertools.product(range(3), repeat=5))
    cost = {one: (prices[range(5), one] ** gamma).sum() ** (1 / gamma) for one in every}
    saved = {one: savings[range(5), one].sum() for one in every}
    solutions = solve_decoders(prices, savings, gamma=gamma)
    assert len(solutions) == max(saved.values()) + 1
    for least, solution in enumerate(solutions):
        assert solution.cost == pytest.approx(min(cost[one] for one in every if saved[one] >= least))
        assert cost[solution.choices] == pytest.approx(solution.cost)
        assert saved[solution.choices] == solution.saved >= least
        assert solution.exactly == sum(saved[one] == least for one in every)


def test_decoders_of_one_width_stay_complete() -> None:
    statistics = made(8, noise=0.01)
    statistics = dataclasses.replace(statistics, widths=dataclasses.replace(statistics.widths, effects=None))
    schedule, certificate = solve_with_widths(statistics, 3 * 4 + 8 * 2, [4, 3, 2], [2, 1.5, 1])
    assert schedule.decoder_widths == {}
    assert schedule.encoder_widths
    assert certificate.cost < certificate.complete_cost


def test_what_cannot_be_solved() -> None:
    statistics = made(6)
    with pytest.raises(ConfigError, match="has no narrow widths: its network was trained at one"):
        solve_with_widths(dataclasses.replace(statistics, widths=None), 10, [2, 1, 1], [1, 1, 1])
    with pytest.raises(ConfigError, match="has no sensitivities, which widths need"):
        solve_with_widths(dataclasses.replace(statistics, sensitivity=None), 10, [2, 1, 1], [1, 1, 1])
    with pytest.raises(ConfigError, match=r"for encoder and decoder one for each of the widths \[1.0, 0.75, 0.5\]"):
        solve_with_widths(statistics, 10, [2, 1], [1, 1, 1])
    with pytest.raises(ConfigError, match="with widths choose one of sum, power"):
        solve_with_widths(statistics, 10, [2, 1, 1], [1, 1, 1], objective="minimax")
    with pytest.raises(ConfigError, match="up to 128 evaluations, and there are 130"):
        solve_with_widths(made(130), 1000, [2, 1, 1], [1, 1, 1])


@pytest.mark.parametrize("total", [math.inf, math.nan])
def test_a_total_is_a_number(total: float) -> None:
    with pytest.raises(ConfigError, match=rf"of a total of {total}; give finite ones above 0"):
        solve_with_widths(made(6), total, (1.0, 0.75, 0.5), (0.3, 0.2, 0.1))


def test_one_evaluation_has_no_choice() -> None:
    with pytest.raises(ConfigError, match="for two evaluations or more, and there is one"):
        solve_with_widths(made(1), 3.0, (1.0, 0.75, 0.5), (0.3, 0.2, 0.1))


@pytest.mark.parametrize("interval", [(0.4, 1.0), (0.2, 0.6), (0.0, 0.5)])
@pytest.mark.parametrize("centred", [True, False])
def test_complete_refreshes_are_the_best_of_as_many_runs(interval: tuple[float, float], centred: bool) -> None:
    """Against all sets of steps, with the runs of their programs counted."""
    n, method = 8, Method(centred=centred)
    statistics = made(n, guidance=2.0, guidance_interval=interval)
    every = [
        schedule_with(statistics, (0, *steps), method)
        for runs in range(n)
        for steps in itertools.combinations(range(1, n), runs)
    ]
    runs_of = [encoder_runs(one) for one in every]
    found = solve_runs(statistics, method)
    closer = 0
    for most in range(2, 2 * n + 1):
        least = min(one.predicted_cost for one, runs in zip(every, runs_of, strict=True) if runs <= most)
        within = [one for one in found if encoder_runs(one) <= most]
        assert within[-1].predicted_cost == pytest.approx(least, rel=1e-9, abs=1e-12)
        counted = solve(statistics, most // 2, centred=centred)
        closer += within[-1].predicted_cost < counted.predicted_cost * (1 - 1e-6)
        as_many = Solved(statistics, method)(most // 2)
        assert encoder_runs(as_many) <= most
        assert as_many.predicted_cost <= counted.predicted_cost * (1 + 1e-9)
    assert closer > 4


def encoder_runs(schedule: Schedule) -> int:
    return sum(work.encoded for work in branch_work(compile_program(schedule)))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_where_every_refresh_takes_the_same_it_is_what_solve_gives(guidance: float) -> None:
    statistics = made(8, guidance=guidance, guidance_interval=(0.0, 1.0), closed_interval=guidance != 1.0)
    assert ((statistics.spec.guidance_weights != 1.0) == (guidance != 1.0)).all()
    expected = [solve(statistics, budget) for budget in range(1, 9)]
    assert solve_runs(statistics, Method()) == expected
    assert [Solved(statistics, Method())(runs) for runs in range(1, 9)] == expected


@pytest.mark.parametrize("method", [Method(sources=3), Method(sources=4, centred=False), Method(forecast="hold"),
                                    Method(objective="minimax"), PUBLISHED], ids=str)  # fmt: skip
def test_other_forecasts_and_objectives_are_those_of_solve(method: Method) -> None:
    statistics = made(8, guidance=2.0, guidance_interval=(0.4, 1.0))
    curve = [schedule for schedule, _ in solve_curve(statistics, 8, method)]
    assert solve_runs(statistics, method) == curve
    for budget, schedule in enumerate(curve, 1):
        assert Solved(statistics, method)(budget).predicted_cost <= schedule.predicted_cost
