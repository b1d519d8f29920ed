"""Labels are a function of (seed, image index): against brute force, in any order and any parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddt_accel import draw_labels
from ddt_accel.cli.drawers import parse_labels
from ddt_accel.errors import ConfigError
from ddt_accel.sampling.labels import Labels


def test_equal_is_the_index_modulo_the_classes() -> None:
    labels = Labels.equal(10).of(seed=5, indices=range(50_000))
    assert labels.dtype == torch.int64
    assert labels.tolist() == [index % 10 for index in range(50_000)]
    assert set(np.bincount(labels).tolist()) == {5000}


def test_random_is_that_of_the_seed_and_near_uniform() -> None:
    labels = Labels.random(10).of(seed=5, indices=range(4000))
    assert torch.equal(labels, draw_labels(10, seed=5, indices=range(4000)))
    assert not torch.equal(labels, Labels.random(10).of(seed=6, indices=range(4000)))
    assert abs(np.bincount(labels, minlength=10) - 400).max() < 5 * 400**0.5


@pytest.mark.parametrize("labels", [Labels.equal(4), Labels.random(4), Labels(num_classes=4, in_turn=(3, 0, 0))])
def test_parts_are_those_of_the_whole(labels: Labels) -> None:
    whole = labels.of(seed=1, indices=range(30))
    assert torch.equal(torch.cat([labels.of(seed=1, indices=range(a, a + 7)) for a in (0, 7, 14)]), whole[:21])
    assert torch.equal(labels.of(seed=1, indices=[17, 3]), whole[[17, 3]])


NAMES = ("ant", "bee", "cat", "dog")


@pytest.mark.parametrize(
    ("text", "in_turn", "described"),
    [
        (None, (0, 1, 2, 3), "equal"),
        ("equal", (0, 1, 2, 3), "equal"),
        ("0,1,2,3", (0, 1, 2, 3), "equal"),  # the same images, so the same run
        (" random ", None, "random"),
        ("cat, ant,1", (2, 0, 1), "2,0,1"),
        ("3", (3,), "3"),
    ],
)
def test_as_they_are_typed(text: str | None, in_turn: tuple[int, ...] | None, described: str) -> None:
    labels = parse_labels(text, 4, NAMES)
    assert (labels.in_turn, labels.described) == (in_turn, described)


@pytest.mark.parametrize("text", ["", "4", "-1", "wolf", "0,,1", "equal,1", "1.0"])
def test_others_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="give equal, random, or numbers from 0 to 3 or one of ant, bee, cat, dog"):
        parse_labels(text, 4, NAMES)
    with pytest.raises(ConfigError, match="whole numbers from 0 to 3"):
        Labels(num_classes=4, in_turn=(0, 4))


def test_long_lists_are_told_apart_in_few_words() -> None:
    lists = [tuple(index * step % 7 for index in range(5000)) for step in (1, 2, 3)]
    told = {Labels(num_classes=7, in_turn=one).described for one in lists}
    assert len(told) == 3
    assert max(map(len, told)) < 120
