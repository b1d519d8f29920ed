"""The page itself, by Gradio (extra `web`)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from ddt_accel.errors import DependencyError
from ddt_accel.studio.pareto import plot
from ddt_accel.studio.race import MOST_PICTURES
from ddt_accel.studio.visit import EVERY_CLASS, View, Visits
from ddt_accel.studio.words import told

try:
    import gradio as gr
except ImportError:
    raise DependencyError("gradio is not installed; install it with `pip install 'ddt-accel[web]'`.") from None

_HERE = Path(__file__).parent
MOST_WAITING = 32  # visitors in the queue; the next one is told to come back

# A point of the plot, by mouse and by keyboard, becomes an event of Gradio's.
_CHOOSING = """
const choose = (event) => {
  const point = event.target.closest('[data-stop]');
  if (!point || (event.type === 'keydown' && event.key !== 'Enter' && event.key !== ' ')) return;
  event.preventDefault();
  trigger('select', {index: Number(point.dataset.stop), value: point.getAttribute('aria-label')});
};
element.addEventListener('click', choose);
element.addEventListener('keydown', choose);
"""

# What the slider stands at, for who hears it instead of seeing it.
_SAYING = """
const say = () => {
  const range = document.querySelector('#cost input[type=range]');
  if (range) range.setAttribute('aria-valuetext', element.innerText.trim().replace(/\\s+/g, ' '));
};
say();
watch('value', say);
"""

_FONT = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def build(visits: Visits, *, model: str, backend: str) -> gr.Blocks:
    """The page for one network, with all its events."""
    stops, names = visits.stops, visits.names
    first = stops.first
    classes = [("every class in turn", EVERY_CLASS)]
    classes += [(names[k] if names else f"class {k}", k) for k in range(visits.num_classes)]

    weakest, strongest = stops.guidance

    def drawn(*given: Any) -> Iterator[tuple[Any, ...]]:
        for view in visits.drawing(*given):
            # Something is handed over after every step, so that Gradio can stop it there.
            yield (gr.skip(),) * 4 if view is None else _shown(view)

    def guidance_at(place: float) -> dict[str, Any]:
        stop = stops.at(place)
        label = "Guidance" if stop.takes_guidance else "Guidance, fixed"
        return {"value": stop.schedule.spec.guidance, "interactive": stop.takes_guidance, "label": label}

    def moved(place: float) -> tuple[Any, ...]:
        said = told(stops.at(place), stops), visits.rulers(place)
        return *said, gr.update(**guidance_at(place)), plot(stops, int(place))

    def stopped(place: float) -> tuple[Any, ...]:
        return '<p role="status">Stopped.</p>', visits.rulers(place)

    def chosen(event: gr.SelectData) -> tuple[Any, ...]:
        return event.index, gr.update(selected="draw")

    with gr.Blocks(title="ddt-accel studio", analytics_enabled=False) as page:
        gr.HTML(
            '<div class="title"><h1>ddt-accel studio</h1><p>The same noise, drawn twice: by the original sampler, and '
            "along a schedule that runs the large encoder only where it pays.</p>"
            f'<p class="model">{escape(model)} · {escape(backend)}</p></div>'
        )
        pair = gr.State(None)
        with gr.Tabs() as tabs:
            with gr.Tab("Draw", id="draw"):
                with gr.Row(equal_height=True):
                    label = gr.Dropdown(classes, value=EVERY_CLASS, label="Class", min_width=150, scale=3)
                    pictures = gr.Slider(1, MOST_PICTURES, value=4, step=1, label="Pictures", min_width=150, scale=3)
                    guidance = gr.Slider(weakest, strongest, step=0.1, min_width=150, scale=3, **guidance_at(first))
                    seed = gr.Number(0, label="Seed", precision=0, min_width=100, scale=2)
                    die = gr.Button("Roll", icon=_HERE / "die.svg", min_width=60, scale=1, elem_id="die")
                place = gr.Slider(
                    0,
                    max(1, len(stops.stops) - 1),
                    value=first,
                    step=1,
                    label="Cost, from the fastest to the exact",
                    elem_id="cost",
                )
                about = gr.HTML(told(stops.stops[first], stops), js_on_load=_SAYING)
                rulers = gr.HTML(visits.rulers(first))
                with gr.Row():
                    draw = gr.Button("Draw", variant="primary", elem_id="start")
                    stop = gr.Button("Stop", elem_id="stop")
                status = gr.HTML("<p>Ready.</p>", elem_classes="status", elem_id="status")
                columns = gr.HTML(visits.columns([], None, None))
                apart = gr.Checkbox(False, label="Show the difference", elem_id="difference")
                difference = gr.HTML("")
            with gr.Tab("Trade-off", id="plot"):
                gr.HTML("<p>Each point is a stop of the slider. Choose one, and draw along it.</p>")
                chart = gr.HTML(plot(stops, first), js_on_load=_CHOOSING, elem_id="chart")
            with gr.Tab("How it works", id="how"):
                gr.HTML((_HERE / "how.html").read_text())

        private: dict[str, Any] = {"api_visibility": "private"}
        light: dict[str, Any] = {**private, "queue": False, "show_progress": "hidden"}
        asked = [label, pictures, seed, place, guidance]
        drawing: dict[str, Any] = {
            **private,
            "inputs": asked,
            "outputs": [status, rulers, columns, pair],
            "show_progress": "minimal",
            "show_progress_on": status,
            "concurrency_limit": 1,
            "concurrency_id": "network",
        }
        runs = [
            draw.click(drawn, **drawing),
            place.release(drawn, **drawing, trigger_mode="always_last"),
            page.load(drawn, **drawing),
        ]
        stop.click(stopped, place, [status, rulers], cancels=runs, **light)
        die.click(lambda: random.randrange(2**32), None, seed, **light)
        gr.on([place.change, page.load], moved, place, [about, rulers, guidance, chart], **light)
        chart.select(chosen, None, [place, tabs], **light)
        gr.on([apart.change, pair.change], visits.apart, [pair, apart], difference, **light)
    page.queue(max_size=MOST_WAITING)
    return page


def _shown(view: View) -> tuple[Any, ...]:
    keeps = view.pair is None and not view.failed
    return view.status, view.rulers, view.columns, gr.skip() if keeps else view.pair


def launched(page: gr.Blocks, **settings: Any) -> Any:
    """Serves the page, with nothing on it from another host; `settings` are those of Gradio's `launch`."""
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=_FONT, font_mono=_MONO).set(
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300"
    )
    own: dict[str, Any] = {
        "theme": theme,
        "css_paths": _HERE / "style.css",
        "ssr_mode": False,
        "share": False,
        "footer_links": [],
        "run_history": False,
    }
    return page.launch(**{**own, **settings})
