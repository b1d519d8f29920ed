"""The layout is the architecture: imports point one way, heavy packages load late, files stay small."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import ddt_accel

PACKAGE = Path(ddt_accel.__file__).parent
# Each may import what stands before it, and itself.
ORDER = ["errors", "stages", "artifacts", "locks", "cluster", "spec", "means", "rows", "schedule", "collection",
         "solver", "networks", "sampling", "backends", "integrations", "calibration", "exporting", "evaluation",
         "rivals", "fitting", "comparison", "training", "report", "drawing", "distribution", "workspace", "offering",
         "studio", "serving", "cli", "__main__"]  # fmt: skip
TORCHLESS = {"errors", "stages", "artifacts", "locks", "cluster", "spec", "means", "rows", "schedule", "collection",
             "solver"}  # fmt: skip
HOMES = {
    "typer": "cli", "rich": "cli", "jinja2": "report", "matplotlib": "report", "huggingface_hub": "networks",
    "ray": "cluster serving", "gradio": "studio", "fastapi": "serving", "pydantic": "serving", "uvicorn": "serving",
    "prometheus_client": "serving",
}  # fmt: skip


def imports(path: Path) -> set[str]:
    found = {alias.name for node in nodes(path) if isinstance(node, ast.Import) for alias in node.names}
    return found | {node.module for node in nodes(path) if isinstance(node, ast.ImportFrom) and node.module}


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text())))


def modules() -> list[tuple[str, Path]]:
    paths = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    return [(path.relative_to(PACKAGE).with_suffix("").parts[0], path) for path in paths]


def test_every_part_has_its_place() -> None:
    assert {part for part, _ in modules()} == set(ORDER)


def test_imports_point_up_the_list() -> None:
    for part, path in modules():
        for name in imports(path):
            if name.startswith("ddt_accel."):
                target = name.split(".")[1]
                assert ORDER.index(target) <= ORDER.index(part), f"{path} imports {name}"
            root = name.split(".")[0]
            assert root not in HOMES or part in HOMES[root].split(), f"{path} imports {name}"
            assert root != "torch" or part not in TORCHLESS, f"{path} imports {name}"


def test_no_module_outside_networks_knows_a_family() -> None:
    """Neither its folder, nor its types, nor its name as a value; prose may cite one."""
    families = {path.parent.name for path in PACKAGE.glob("networks/*/network.py")}
    paths = [path for _, path in modules()]
    types = {
        node.name
        for path in paths
        if path.parent.name in families
        for node in nodes(path)
        if isinstance(node, ast.ClassDef)
    }
    assert {"ddt", "rae", "pixnerd"} <= families
    assert {"DDT", "DiTDHConfig", "PreparedPixNerd"} <= types
    names = {ast.Name: "id", ast.Attribute: "attr", ast.Constant: "value"}
    for path in paths:
        if "networks" in path.parts:
            continue
        assert not {name for name in imports(path) if {*name.split(".")} & families}, path
        for node in nodes(path):
            said = names.get(type(node))
            assert said is None or getattr(node, said) not in types | families, f"{path}:{node.lineno}"


def test_families_have_the_same_files() -> None:
    folders = [path.parent for path in PACKAGE.glob("networks/*/network.py")]
    files = {folder.name: {path.name for path in folder.glob("*.py")} for folder in folders}
    assert len({frozenset(names) for names in files.values()}) == 1, files


def test_files_stay_small_and_have_a_subject() -> None:
    for _, path in modules():
        lines = path.read_text().splitlines()
        assert len(lines) <= 350, f"{path} has {len(lines)} lines"
        assert path.stem not in ("utils", "helpers", "common", "misc")
        assert path.stem == "__init__" or lines[0].startswith('"""'), f"{path} does not say what it is"


def test_public_names_resolve_and_are_lazy() -> None:
    for name in ddt_accel.__all__:
        assert getattr(ddt_accel, name) is not None
    code = "import sys, ddt_accel; assert not {'torch', 'numpy', 'typer'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_pytorch_draws_without_its_compiler(tiny_model_path, tmp_path) -> None:
    """Whose import takes seconds."""
    schedule = tmp_path / "one.json"
    ddt_accel.Schedule.full(ddt_accel.SamplingSpec(num_steps=1)).save(schedule)
    line = ["ddt-accel", "sample", "--backend", "torch", "--model", tiny_model_path, "--schedule", schedule, "-n", 1,
            "-w", tmp_path / "run"]  # fmt: skip
    code = (
        f"import sys; sys.argv = {list(map(str, line))}\n"
        "from ddt_accel.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 1


def test_help_loads_no_heavy_package() -> None:
    code = (
        "import sys; sys.argv = ['ddt-accel', '--help']\n"
        "from ddt_accel.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'onnxruntime', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_function_and_a_package_never_share_a_name() -> None:
    """`ddt_accel.export` must stay a function, whatever is imported first."""
    parts = {path.stem for path in PACKAGE.iterdir()}
    assert not parts & (set(ddt_accel.__all__) - {"Schedule"})
