"""Draws the README's picture: the same noise along three schedules of the embedded model, all measured in one run.

They are the unshared one, the published one, and the best shipped fit that costs no more than the published. Under each
row stands a ruler: a mark for every step at its time, a tall one where the encoder runs. Speeds and PSNRs are means
over all images; shown is the first image of each of eight classes, whatever it looks like. Prints its conditions.

Usage: python benchmarks/picture.py [--runs N] [--images N] [--out FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from setting import conditions

from ddt_accel import SamplingSpec, Schedule, calibrate, draw_labels, load_model, solve
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.evaluation.benchmark import Measurement, measure
from ddt_accel.evaluation.costs import counted_costs
from ddt_accel.evaluation.fidelity import to_uint8
from ddt_accel.networks.split import latent_shape_of
from ddt_accel.sampling.program import compile_program
from ddt_accel.schedule import shipped_schedules

MODEL, SEED, BATCH, COLUMNS = "cifar10", 1, 16, 8
# In pixels; shown at half of that, so that a pixel of the model is three wide and text is sharp on fine screens.
SCALE, GAP, MARGIN, CAPTION, RULER, ROW_GAP = 6, 8, 24, 60, 64, 44
PAPER, INK, FAINT, ORANGE, BLUE, GREY = "#ffffff", "#1d2530", "#5c6773", "#c25e00", "#1f5fbf", "#444444"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="encoder runs of the published method in 50 steps")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "images" / "same-noise.png")
    arguments = parser.parse_args()

    model = load_model(MODEL)
    shape = latent_shape_of(model)
    spec = SamplingSpec(num_steps=50)
    calibration = calibrate(model, spec, num_samples=64, sensitivity_samples=0)
    published = solve(calibration, arguments.runs, forecast="hold", objective="similarity")
    costs = counted_costs(model.config, shape)
    affordable = [
        schedule
        for schedule in map(Schedule.load, shipped_schedules())
        if schedule.is_fitted
        and schedule.checkpoint_sha256 == published.checkpoint_sha256
        and schedule.spec.final_step is None
        and costs.of(schedule) <= costs.of(published)
    ]
    schedules = {
        "Original": Schedule.full(spec),
        "Published sharing": published,
        "ddt-accel, fitted": max(affordable, key=costs.of),
    }
    measured, latents = measure(
        TorchBackend(model), schedules, latent_shape=shape, num_images=arguments.images, seed=SEED, batch_size=BATCH
    )
    print(conditions(model, "cpu", f"{arguments.images} images of seed {SEED}", f"batches of {BATCH}", "fp32, eager"))
    labels = draw_labels(model.config.num_classes, seed=SEED, indices=range(arguments.images)).tolist()
    shown = [labels.index(label) for label in range(COLUMNS)]
    rows = [
        (measurement, schedule, to_uint8(latents[name][shown]))
        for measurement, (name, schedule) in zip(measured, schedules.items(), strict=True)
    ]
    for measurement, schedule, _ in rows:
        print(f"{measurement.name}: {described(measurement, schedule)}; counted cost {costs.of(schedule):.3g}")
    sheet(rows).save(arguments.out, optimize=True)
    print(arguments.out)


def described(measurement: Measurement, schedule: Schedule) -> str:
    runs = f"{schedule.budget} encoder runs in {measurement.num_evaluations} steps"
    if measurement.psnr is None:
        return runs
    return f"{runs}   ·   {measurement.speedup:.1f}× as fast   ·   {measurement.psnr.mean:.1f} dB"


def sheet(rows: list[tuple[Measurement, Schedule, np.ndarray]]) -> Image.Image:
    side = rows[0][2].shape[1] * SCALE
    width = 2 * MARGIN + COLUMNS * side + (COLUMNS - 1) * GAP
    height = CAPTION + side + RULER
    picture = Image.new("RGB", (width, len(rows) * (height + ROW_GAP) - ROW_GAP + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    name_font, text_font = (ImageFont.truetype(fonts / f"{name}.ttf", 38) for name in ("DejaVuSans-Bold", "DejaVuSans"))
    for row, (measurement, schedule, images) in enumerate(rows):
        top, color = MARGIN + row * (height + ROW_GAP), (GREY, ORANGE, BLUE)[row]
        draw.text((MARGIN, top + 20), measurement.name, INK, name_font, anchor="lm")
        draw.text((width - MARGIN, top + 20), described(measurement, schedule), FAINT, text_font, anchor="rm")
        for column, image in enumerate(images):
            enlarged = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
            picture.paste(enlarged, (MARGIN + column * (side + GAP), top + CAPTION))
        base = top + height - 8
        draw.line((MARGIN, base, width - MARGIN, base), FAINT, 3)
        for step, evaluation in enumerate(compile_program(schedule).evaluations):
            x = round(MARGIN + evaluation.time * (width - 2 * MARGIN))
            ink, length, thickness = (color, 40, 7) if step in schedule.refresh_steps else (FAINT, 14, 3)
            draw.line((x, base, x, base - length), ink, thickness)
    return picture


if __name__ == "__main__":
    main()
