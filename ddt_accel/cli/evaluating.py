"""`evaluate`."""

from __future__ import annotations

import hashlib
import os
import shlex
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddt_accel.cli.console import emit, following, keeping, say, say_threads, show, stages, steps
from ddt_accel.cli.options import (
    DEFAULT_WORKSPACE,
    DeviceOption,
    JsonOption,
    ThreadsOption,
    WorkspaceOption,
    check_device,
)

if TYPE_CHECKING:
    from ddt_accel.distribution.evaluation import Evaluation, Pairing
    from ddt_accel.distribution.features import Features
    from ddt_accel.distribution.inception_weights import FeatureNetwork
    from ddt_accel.distribution.pictures import Pictures
    from ddt_accel.distribution.statistics import Statistics

FORMAT, VERSION = "ddt-accel evaluation", 1


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What --reference names: statistics, pictures, or both."""

    name: str  # in a file's name
    where: str  # in messages
    statistics: Statistics | None
    pictures: Pictures | None

    @property
    def size(self) -> tuple[int, int] | None:
        if self.pictures is not None:
            return self.pictures.size
        return None if self.statistics is None else self.statistics.size


def evaluate(
    samples: Annotated[
        Path | None,
        typer.Argument(
            help="A run's folder, an npz, or a folder or zip of pictures. Default: the workspace's images.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            "-r",
            help="What to compare with: cifar10 (its test images), ADM's npz, or pictures in any of these forms.",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Another sampler's pictures of the same noises: how far apart, and which is nearer."),
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    inception: Annotated[
        Path | None,
        typer.Option(help="The feature network's weights as torch-fidelity has them. Default: the extra fid's."),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="Which pictures of a folder or zip that has train, test or others.")
    ] = "test",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pictures in the network at a time.")] = 32,
    out: Annotated[Path | None, typer.Option(help="File for the figures, JSON. Default: beside the samples.")] = None,
    json: JsonOption = False,
) -> None:
    """Compare drawn images with real ones: FID, sFID, Inception Score, precision, recall and KID.

    Features are kept beside the pictures, so that each is looked at once, whatever it is compared with next.
    """
    from ddt_accel.artifacts import check_writable, write_json
    from ddt_accel.distribution.evaluation import Reference, compare
    from ddt_accel.distribution.evaluation import evaluate as evaluated
    from ddt_accel.distribution.inception_weights import load_inception
    from ddt_accel.distribution.pictures import check_pairs, check_size, opened
    from ddt_accel.distribution.statistics import Statistics
    from ddt_accel.workspace import Workspace

    where = samples or Workspace(workspace).images_path
    with ExitStack() as stack:
        asked = _reference(reference, split, stack)
        ours = stack.enter_context(opened(where, split=split))
        check_size(ours, asked.size, asked.where)
        theirs = None
        if against is not None:
            theirs = stack.enter_context(opened(against, split=split))
            check_pairs(ours, theirs)
            check_size(ours, theirs.size, str(against))
        beside = f"-against-{_called(against)}" if against is not None else ""
        path = out or ours.kept / f"{asked.name}{beside}.json"
        device = check_device(device)
        network = load_inception(inception, device=device)
        if asked.statistics is not None:
            asked.statistics.check_network(network, asked.where)
        check_writable(path)
        say_threads(threads, device)
        drawn = _features(ours, network, batch_size)
        others = None if theirs is None else _features(theirs, network, batch_size)
        real = None if asked.pictures is None else _features(asked.pictures, network, batch_size)
    statistics = asked.statistics
    if statistics is None:
        assert real is not None
        statistics = Statistics(
            pool=real.pool_moments, spatial=real.spatial, network=network.sha256, count=len(real.pool)
        )
    known = Reference(statistics=statistics, features=real)
    with stages() as on_stage:
        found = evaluated(drawn, known, on_stage)
        pairing = None if others is None else compare(drawn, others, known, on_stage=on_stage)
    for note in found.notes:
        say(note)
    numbers = {
        "samples": str(where),
        "images": ours.count,
        "reference": asked.where,
        "reference_images": statistics.count,
        "size": list(ours.size),
        "network": network.name,
        "network_sha256": network.sha256,
        **_numbers(found),
        "against": None if pairing is None else {"samples": str(against), **_pairs(pairing)},
        "notes": list(found.notes),
    }
    write_json(path, FORMAT, VERSION, numbers)
    if not json:
        _print(found, pairing)
    again = shlex.join(["ddt-accel", "evaluate", *([str(samples)] if samples else []), "-r", asked.where])
    emit(
        numbers | {"file": str(path)},
        as_json=json,
        text=f"{ours.count} pictures of {where} beside {asked.where}, by {network.name}.\n"
        f"Made: {path}; features are kept beside it.\n"
        + following(f"{again} --against OTHER" if against is None else "ddt-accel bench", workspace=workspace),
    )


def _reference(name: str | None, split: str, stack: ExitStack) -> _Asked:
    from ddt_accel.distribution.pictures import holds_pictures, holds_statistics, opened
    from ddt_accel.distribution.statistics import Statistics, shipped_statistics
    from ddt_accel.errors import ConfigError

    shipped = shipped_statistics()
    wanted = ", ".join([*shipped, "ADM's npz, or an npz, a folder or a zip of pictures"])
    if name is None:
        raise ConfigError(f"--reference is missing; give {wanted}.")
    path = Path(os.path.expanduser(name))
    if name in shipped:
        return _Asked(name=name, where=name, statistics=Statistics.load(shipped[name]), pictures=None)
    if not path.exists():
        raise ConfigError(f"There is no {name}; give {wanted}.")
    statistics = Statistics.of_npz(path) if holds_statistics(path) else None
    pictures = None
    if statistics is None or holds_pictures(path):
        pictures = stack.enter_context(opened(path, split=split))
    return _Asked(name=_called(path), where=name, statistics=statistics, pictures=pictures)


def _called(path: Path) -> str:
    """A name for results about a file or folder, of which there are others of the same name elsewhere."""
    place = path.resolve()
    return f"{place.stem}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:6]}"


def _features(pictures: Pictures, network: FeatureNetwork, batch_size: int) -> Features:
    from ddt_accel.distribution.features import features_of
    from ddt_accel.locks import making

    kept = f"Features of finished pictures are kept in {pictures.kept}; the same command goes on from there."
    label = f"features of {pictures.where.name or pictures.where}"
    with (
        making(pictures.kept, say),
        keeping(lambda: kept),
        steps(label, pictures.count, unit="images") as bar,
    ):
        return features_of(pictures, network, bar.advance, say, batch_size=batch_size)


def _numbers(found: Evaluation) -> dict[str, Any]:
    score, near, kid = found.inception_score, found.coverage, found.kid
    return {
        "fid": found.fid,
        "sfid": found.sfid,
        "inception_score": score and score.mean,
        "inception_score_deviation": score and score.deviation,
        "precision": near and near.precision,
        "recall": near and near.recall,
        "kid": kid and kid.mean,
        "kid_deviation": kid and kid.deviation,
        "kid_subset_size": kid and kid.subset_size,
    }


def _pairs(pairing: Pairing) -> dict[str, Any]:
    return {"fid_between": pairing.between, "fid": pairing.fid, "difference": asdict(pairing.difference)}


def _print(found: Evaluation, pairing: Pairing | None) -> None:
    from rich.table import Table

    score, near, kid = found.inception_score, found.coverage, found.kid
    rows = [("FID", f"{found.fid:.3f}", "lower is nearer")]
    if found.sfid is not None:
        rows.append(("sFID", f"{found.sfid:.3f}", "the same of spatial features"))
    if score is not None:
        rows.append(("Inception Score", f"{score.mean:.3f} ± {score.deviation:.3f}", "higher is clearer and more even"))
    if near is not None:
        rows.append(("precision", f"{near.precision:.4f}", "of the drawn, among the real"))
        rows.append(("recall", f"{near.recall:.4f}", "of the real, among the drawn"))
    if kid is not None:
        rows.append(("1000 · KID", f"{1000 * kid.mean:.3f} ± {1000 * kid.deviation:.3f}",
                     f"± over subsets of {kid.subset_size}"))  # fmt: skip
    if pairing is not None:
        gap = pairing.difference
        rows.append(("FID of the other", f"{pairing.fid:.3f}", "to the same reference"))
        rows.append(("FID less the other's", f"{gap.value:+.3f}", f"95 %: {gap.low:+.3f} … {gap.high:+.3f}"))
        rows.append(("FID of one to the other", f"{pairing.between:.3f}", "what changing the sampler changes"))
    table = Table("figure", "value", "")
    for row in rows:
        table.add_row(*row)
    show(table)
