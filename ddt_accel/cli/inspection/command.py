"""`inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddt_accel.cli.console import emit
from ddt_accel.cli.options import JsonOption

if TYPE_CHECKING:
    from ddt_accel.cli.inspection.told import Told


def inspect(
    path: Annotated[Path, typer.Argument(help="Any file or folder that ddt-accel reads or writes, or a shipped name.")],
    json: JsonOption = False,
) -> None:
    """Explain what a file is, after checking it."""
    told = _told(path)
    emit(told.facts, as_json=json, text=told.text())


def _told(path: Path) -> Told:
    from ddt_accel.backends.manifest import FILE_NAME
    from ddt_accel.cli.headers import document as header
    from ddt_accel.cli.inspection.arrays import arrays
    from ddt_accel.cli.inspection.documents import document, schedule
    from ddt_accel.cli.inspection.exports import export, network
    from ddt_accel.cli.inspection.folders import folder, workspace
    from ddt_accel.cli.inspection.foreign import foreign
    from ddt_accel.cli.inspection.told import Told
    from ddt_accel.errors import ArtifactError
    from ddt_accel.networks.locate import embedded_models
    from ddt_accel.schedule import shipped_schedules
    from ddt_accel.workspace import SETTINGS_NAME

    told: Told | None = None
    if not path.exists():
        if str(path) in shipped_schedules():
            return schedule(path)
        if str(path) not in embedded_models():
            raise ArtifactError(
                f"There is no {path}; give a file, a folder, an embedded model ({', '.join(embedded_models())}) or a "
                f"shipped schedule ({', '.join(shipped_schedules())})."
            )
    elif path.is_dir():
        told = folder(path)
    elif not path.is_file():
        raise ArtifactError(f"{path} is neither a file nor a folder; give one that ddt-accel reads or writes.")
    elif path.name == FILE_NAME:
        told = export(path.parent)
    elif path.name == SETTINGS_NAME:
        told = workspace(path.parent)
    elif path.suffix in (".onnx", ".engine"):
        told = network(path)
    elif path.suffix == ".json" and not path.name.endswith(".index.json"):  # of a checkpoint's shards
        told = document(path)
    elif path.suffix == ".safetensors" and (content := header(path)) is not None:
        told = arrays(path, content["format"])
    else:
        told = foreign(path)
    if told is not None:
        return told
    from ddt_accel.networks.checkpoints import describe

    return Told(facts={"kind": "checkpoint", **describe(path)})
