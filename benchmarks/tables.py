"""The tables that a results.jsonl of `gpu.py` fills, as Markdown; rows without figures say "not measured".

`write_tables` puts those of `BLOCKS` where the documentation has `<!-- measured: NAME -->` … `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import read

# XL/2, 256 px, bf16, batch 32, guided throughout, 50 steps, 10 encoder runs: no faster can it be, in ms a batch. By
# rates that were measured on an H200, and are assumed of the others.
FLOORS = {
    "H200": {"held": 446, "two sources": 459, "unshared": 1210},
    "H100": {"held": 655, "two sources": 674, "unshared": 1780},
    "RTX 4090": {"held": 2690, "two sources": 2740, "unshared": 7380},
}
NONE = "not measured"
DOCUMENTS = ("docs/concepts/runtime.md", "README.md")
PIECES = ("encoder", "decoder, held", "decoder, 2 sources", "decoder, 3 sources", "decoder, held, states cached")
Figures = dict[str, dict[str, dict[str, Any]]]  # part → figure → its last line


def figures(path: Path) -> Figures:
    """The last line of every figure, by part and name; one that came to nothing does not replace one that has come."""
    found: Figures = {}
    for line in read(path):
        part = found.setdefault(line["part"], {})
        if line["value"] is not None or line["name"] not in part:
            part[line["name"]] = line
    return found


def value(found: Figures, part: str, name: str) -> float | None:
    got = found.get(part, {}).get(name, {}).get("value")
    return float(got) if isinstance(got, int | float) else None


def shown(number: float | None, form: str = "{:.0f}") -> str:
    return NONE if number is None else form.format(number)


def mean(found: Figures, part: str, name: str) -> float | None:
    """Over rounds."""
    rounds = [value(found, part, key) for key in found.get(part, {}) if key.startswith(f"{name}, round ")]
    taken = [one for one in rounds if one is not None]
    return sum(taken) / len(taken) if taken else None


def card(found: Figures) -> str:
    return str(found.get("probe", {}).get("card", {}).get("value", NONE))


def floors(found: Figures) -> list[str]:
    """Trajectories at batch 32 beside what no card of the kind can be faster than."""
    text = ["| batch 32, ms | " + " | ".join(f"floor, {name}" for name in FLOORS) + f" | measured, {card(found)} |"]
    text = [text[0].replace(f"measured, {NONE}", "measured")]
    text.append("|---|" + "---|" * (len(FLOORS) + 1))
    for way in ("held", "two sources", "unshared"):
        taken = value(found, "trajectories", f"{way}, batch 32, graph")
        if taken is None and (an_image := mean(found, "peers-32", f"ours, {way}")) is not None:
            taken = 32 * an_image / 1e3
        line = [way, *(str(one[way]) for one in FLOORS.values()), shown(None if taken is None else 1e3 * taken)]
        text.append("| " + " | ".join(line) + " |")
    return text


def pieces(found: Figures) -> list[str]:
    """Encoder and decoder at batch 32, and how near they are to a large product and a large copy."""
    products, copied = value(found, "probe", "bf16 product"), value(found, "probe", "copy")
    text = [
        "| 256 px, batch 32 | ms | of the rate of a large product | of the rate of a large copy |",
        "|---|---|---|---|",
    ]
    for name in PIECES:
        line, taken = found.get("parts", {}).get(name, {}), value(found, "parts", name)
        shares = [NONE, NONE]
        for at, (key, rate, unit) in enumerate((("multiply_adds", products, 1e12), ("bytes", copied, 1e9))):
            if taken and rate and key in line:
                shares[at] = f"{line[key] / (taken / 1e3) / (rate * unit):.0%}"
        text.append(f"| {name} | {shown(taken, '{:.2f}')} | {' | '.join(shares)} |")
    return text


def peers(found: Figures) -> list[str]:
    """Milliseconds an image, and how many times as fast ours is with the same refreshes."""
    text = ["| DDT-XL/2, 256 px, bf16, random weights: ms an image | batch 32 | batch 1 |", "|---|---|---|"]
    rows = {
        "published, as it is": "published, eager, unshared",
        "published, its sharing with the same 10 encoder runs": "published, eager, its sharing",
        "published, compiled, its sharing": "published, compiled, its sharing",
        "ours, unshared": "ours, unshared",
        "ours, 10 encoder runs": "ours, held",
    }
    times = {label: [mean(found, part, name) for part in ("peers-32", "peers-1")] for label, name in rows.items()}
    for label, taken in times.items():
        text.append(f"| {label} | " + " | ".join(shown(one, "{:.1f}") for one in taken) + " |")
    return text


def bars(found: Figures) -> list[str]:
    """What was asked of the first GPU, and what came."""
    asked: list[tuple[str, str, float | None, str]] = []
    ours = mean(found, "peers-32", "ours, held"), mean(found, "peers-1", "ours, held")
    for name, bar, theirs, mine in (
        ("published as it is / ours, batch 32", "≥ 8", mean(found, "peers-32", "published, eager, unshared"), ours[0]),
        ("published compiled, same refreshes / ours, batch 32", "≥ 2",
         mean(found, "peers-32", "published, compiled, its sharing"), ours[0]),
        ("published as it is / ours, batch 1", "≥ 8", mean(found, "peers-1", "published, eager, unshared"), ours[1]),
    ):  # fmt: skip
        asked.append((name, bar, theirs / mine if theirs and mine else None, "{:.1f}"))
    ratio = found.get("scaling", {}).get("batch 32, 50 steps, 10 encoder runs", {}).get("ratio")
    asked.append(("host gaps, batch 32", "< 3 %", None if ratio is None else 100 * (ratio - 1), "{:.1f} %"))
    taken, products = value(found, "parts", "encoder"), value(found, "probe", "bf16 product")
    work = found.get("parts", {}).get("encoder", {}).get("multiply_adds")
    share = 100 * work / (taken / 1e3) / (1e12 * products) if taken and products and work else None
    asked.append(("encoder, of the rate of a large product", "≥ 55 %", share, "{:.0f} %"))
    text = ["| | bar | measured |", "|---|---|---|"]
    return text + [f"| {name} | {bar} | {shown(got, form)} |" for name, bar, got, form in asked]


BLOCKS: dict[str, Callable[[Figures], list[str]]] = {"floors": floors, "pieces": pieces, "peers": peers}


def conditions(found: Figures) -> str:
    told = {name: one["value"] for name, one in found.get("probe", {}).items() if isinstance(one["value"], str)}
    told.pop("ended", None)
    return "; ".join(f"{name} {text}" for name, text in told.items()) or NONE


def render(path: Path) -> str:
    """Conditions, how every part ended, the tables, and each part's figures."""
    found = figures(path)
    text = [f"Conditions: {conditions(found)}", "", "| part | ended | s |", "|---|---|---|"]
    for name, one in found.items():
        ended = one.get("ended", {})
        text.append(f"| {name} | {ended.get('value', 'not at all')} | {ended.get('seconds', '–')} |")
    for table in (floors, pieces, peers, bars):
        text += ["", *table(found)]
    for name, one in found.items():
        text += ["", f"**{name}**", "", "| | | |", "|---|---|---|"]
        rows = [line for key, line in one.items() if key != "ended"]
        text += [f"| {line['name']} | {_said(line)} | {line.get('unit', '')} |" for line in rows]
        text += [] if rows else [f"| {NONE} | | |"]
    return "\n".join(text)


def _said(line: dict[str, Any]) -> str:
    got = line["value"]
    if got is None:
        return f"{NONE}: {line.get('error') or line.get('reason')}".replace("\n", " ").replace("|", "/")
    return f"{got:.4g}" if isinstance(got, float) else str(got)


def write_tables(path: Path, root: Path) -> list[Path]:
    """Writes the documentation's tables; not those of a rehearsal. The files that have changed."""
    found = figures(path)
    if found.get("probe", {}).get("networks", {}).get("value") == "tiny":
        return []
    changed = []
    for document in (root / name for name in DOCUMENTS):
        before = after = document.read_text()
        for name, table in BLOCKS.items():
            block = re.compile(rf"(<!-- measured: {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
            filled = "\n".join(table(found))
            after = block.sub(rf"\g<1>{filled}\g<2>", after)
        if after != before:
            document.write_text(after)
            changed.append(document)
    return changed
