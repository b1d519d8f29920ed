"""What a report draws: labels that can be read, the Pareto front, and differences as large as it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from ddt_accel.evaluation.fidelity import to_images
from ddt_accel.report.figures import pareto_front
from ddt_accel.report.gallery import amplified
from ddt_accel.report.labels import Label, place
from ddt_accel.report.render import ruler


@pytest.mark.parametrize("seed", range(3))
def test_labels_lie_on_nothing(seed) -> None:
    rng = np.random.default_rng(seed)
    points = np.sort(rng.random((25, 2)), axis=0)
    figure = Figure(figsize=(5, 4))
    axes = figure.subplots()
    axes.plot(*points.T, marker="o")
    labels = [Label(x=x, y=y, text=f"{k} runs", color="black", needed=k == 0) for k, (x, y) in enumerate(points)]
    place(figure, axes, labels, [points], 8)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    markers = axes.transData.transform(points)
    frame = axes.get_window_extent()
    assert axes.texts[0].get_text() == "0 runs"
    assert len(boxes) > 12
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:k])
        assert not any(box.contains(x, y) for x, y in markers)
        assert frame.x0 <= box.x0 < box.x1 <= frame.x1
        assert frame.y0 <= box.y0 < box.y1 <= frame.y1


def test_the_front_is_what_nothing_beats() -> None:
    points = [tuple(point) for point in np.random.default_rng(0).random((40, 2)).tolist()]
    unbeaten = [(x, y) for x, y in points if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)]
    assert pareto_front(points) == sorted(unbeaten, reverse=True)


def test_differences_are_amplified_by_what_is_said() -> None:
    goal = torch.zeros(2, 3, 8, 8)
    near, far = goal + 0.02, goal - 0.1
    factor, grey = amplified({"near": to_images(near) - to_images(goal), "far": to_images(far) - to_images(goal)})
    assert factor == 8  # 0.05 · 16 would be out of range
    assert np.unique(grey["near"]).tolist() == [round(255 * (0.5 + 8 * 0.01))]
    assert np.unique(grey["far"]).tolist() == [round(255 * (0.5 - 8 * 0.05))]


def test_the_ruler_marks_where_the_encoder_runs() -> None:
    svg = ruler(5, (0, 3))
    assert svg.count("<rect") == 5
    assert svg.count("#1f5fbf") == 2
    assert 'x="3.08"' in svg.split("#1f5fbf")[1]
    assert "at evaluations 0, 3" in svg
