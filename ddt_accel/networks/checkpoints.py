"""From a name, a path or a repository id to a network with its weights."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddt_accel.errors import CheckpointError, ConfigError, listed
from ddt_accel.networks.archives import ORDINARY
from ddt_accel.networks.config import ConditionConfig, LatentShape, Source, SplitConfig, stated
from ddt_accel.networks.contents import Contents, Entry, open_checkpoint
from ddt_accel.networks.dynamic.routing import is_of_a_router, of_routers, route, routed_widths
from ddt_accel.networks.families import (
    blank_tensors,
    build,
    check_family,
    family_in,
    published_of,
    settings_in,
    titles,
)
from ddt_accel.networks.layout import NETWORK, Layout, WeightSet, choose, layout_of
from ddt_accel.networks.locate import locate
from ddt_accel.networks.naming import Kind
from ddt_accel.networks.settings import given_settings, settings_beside
from ddt_accel.networks.split import SplitNetwork

SAME_TABLE = 1e-2  # what half precision leaves of values of up to 1

_log = logging.getLogger(__name__)


def load_model(
    source: str | Path,
    *,
    config: Mapping[str, Any] | SplitConfig | str | Path | None = None,
    weights: str = "ema",
    latent_shape: tuple[int, int, int] | None = None,
) -> SplitNetwork:
    """A network of any family in float32 on the CPU, in evaluation mode.

    `source` is an embedded model's short name, a file that `torch.save`, Lightning, DeepSpeed or safetensors wrote, the
    index or a shard of several, a folder that holds one checkpoint, or a Hugging Face repository id, with the path of
    the file after a colon where it holds several. The configuration is, in this order: `config` (the published
    settings, or a YAML with them), what the file itself says, a published YAML beside it or one folder up, what is
    known of a published file, what its weights tell. `weights` is "ema" or "raw", for checkpoints that hold both, or
    the name of a set as `inspect` shows it; `ddt_accel.networks.layout` has the rule. `latent_shape` is (C, H, W),
    where nothing else says.

    Tensors of the network's own names must all be there and fit. Where there are routers the network has the widths
    that they come to. What else stands among them (counters, heads of the training, routers of tokens) is passed over,
    and the names are logged as a warning.

    Raises CheckpointError for unusable weights, ConfigError for an unusable configuration.
    """
    given = given_settings(config)
    located = locate(str(source))
    path = located.path
    contents = open_checkpoint(path)
    layout = layout_of(contents, located.training)
    chosen = choose(layout, weights, path)
    shapes = chosen.shapes
    found = settings_beside(path, contents.metadata, located.known, shapes, needed=given.config is None)
    told = found if given.config is None else given.for_weights(shapes)
    assert told.config is not None  # as it was needed
    check_family(told.config, shapes, path, told.origin)
    # What is fixed by the network itself stands before what stands beside another's settings.
    latent_shape = latent_shape or told.latent_shape or told.config.fixed_shape or found.latent_shape
    if latent_shape is not None:
        told.config.num_tokens(latent_shape)
    _check_sum(contents, path)
    model, used = _filled(told.config, chosen, path)
    if isinstance(model.config, ConditionConfig) and (routers := of_routers(chosen.tensors)):
        used |= route(model, {name: chosen.tensors[name].read() for name in routers})
    routed = routed_widths(model.config)
    if left_out := layout.left_out(chosen, used):
        _log.warning("Left out of %s, as they are none of the network's: %s.", path, listed(left_out))
    model.source = Source(
        name=located.name,
        sha256=identity(model),
        latent_shape=latent_shape,
        class_names=found.class_names,
        widths=found.widths if routed is None else routed,
    )
    return model.eval().requires_grad_(False)


def identity(model: SplitNetwork) -> str:
    """The SHA-256 of a network's weights and configuration: what a calibration or a schedule belongs to.

    It does not depend on the file that they came in, and tells the averaged weights of a checkpoint from the raw ones.
    """
    digest = hashlib.sha256(json.dumps(model.config.essence, sort_keys=True).encode())
    digest.update(tensors_sha256(model.state_dict()).encode())
    return digest.hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """A checksum over names, dtypes, shapes and contents."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_sum(contents: Contents, path: Path) -> None:
    """Compares the tensors with the checksum that files of ours carry."""
    stated = contents.metadata.get("tensors_sha256")
    if stated is not None and stated != tensors_sha256(
        {".".join(keys): entry.read() for keys, entry in contents.tensors}
    ):
        raise CheckpointError(f"{path} is damaged: its tensors fail their checksum; download or copy it anew.")


def _filled(config: SplitConfig, chosen: WeightSet, path: Path) -> tuple[SplitNetwork, set[str]]:
    """The network with its weights in float32, and the names in the file that are its.

    Says which tensors are unusual, missing, extra or misshapen.
    """
    unusual = {name: entry.unusual for name, entry in chosen.tensors.items() if entry.unusual}
    if unusual:
        kinds = " and ".join(sorted(set(unusual.values())))
        raise CheckpointError(
            f"{path} holds {len(unusual)} of its weights {chosen.name} as {kinds} tensors ({listed(list(unusual))}); "
            f"{ORDINARY}."
        )
    published, expected = published_of(config), blank_tensors(config)
    parts = NETWORK | published.PARTS
    stored = {name: entry for name, entry in chosen.tensors.items() if name.split(".")[0] in parts}
    missing = [name for name in expected if name not in stored]
    routed = isinstance(config, ConditionConfig)
    extra = [name for name in stored if name not in expected and not (routed and is_of_a_router(name))]
    wrong = [reason for name in expected if name in stored and (reason := _differs(name, expected[name], stored[name]))]
    tables = published.table_shapes(config)
    wrong += [
        f"{name} is {list(chosen.members[name].shape)}, expected {list(shape)}"
        for name, shape in tables.items()
        if name in chosen.members and chosen.members[name].shape != shape
    ]
    problems = [f"missing {listed(missing)}"] if missing else []
    problems += [f"extra {listed(extra)}"] if extra else []
    problems += [listed(wrong)] if wrong else []
    if problems:
        raise CheckpointError(
            f"{path} does not fit the configuration ({_titled(config)}). Of its weights {chosen.name} "
            f"{len(missing) + len(extra) + len(wrong)} differ: {'; '.join(problems)}.{_contradicted(config, chosen)}"
        )
    wide = {name: stored[name].read().float() for name in expected}
    broken = [name for name, tensor in wide.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{path} holds NaN, infinity or numbers beyond float32 in {listed(broken)}; it cannot be used."
        )
    model = build(config)
    model.load_state_dict(wide, strict=True)
    others = [
        name
        for name, table in model.computed_tables().items()
        if name in chosen.members and (chosen.members[name].read().float() - table).abs().max() > SAME_TABLE
    ]
    if others:
        raise CheckpointError(
            f"{path} holds other tables in {listed(others)} than follow from its settings, so that its network is none "
            "that can be run here."
        )
    return model, {*expected, *tables}


def _contradicted(config: SplitConfig, chosen: WeightSet) -> str:
    """Which settings the weights tell otherwise, as far as they tell any."""
    try:
        told, given = asdict(settings_in(chosen.shapes)), asdict(config)
    except ConfigError:
        return ""
    others = [f"{name} is {told[name]}, not {given[name]}" for name in given if told[name] not in (given[name], None)]
    return f" By them {' and '.join(others)}." if others else ""


def _shown(config: SplitConfig) -> str:
    return ", ".join(f"{name} {value}" for name, value in stated(config).items() if name != "block_routes")


def _titled(config: SplitConfig) -> str:
    return f"{published_of(config).TITLE}: {_shown(config)}"


def _kept(config: SplitConfig, latent_shape: LatentShape) -> str:
    """What a slot takes, in memory and in what is read of it at every step."""
    tokens = config.num_tokens(latent_shape)
    modulations, state = (2 * tokens * size / 1e6 for size in (config.modulation_size, config.state_size))
    return (
        f"{modulations:,.3g} MB of modulations, or {state:,.3g} MB of states (--cache state), for each image, branch "
        "and refresh that is still read, in 16 bits"
    )


def _differs(name: str, expected: Tensor, stored: Entry) -> str | None:
    if stored.shape != expected.shape:
        return f"{name} is {list(stored.shape)}, expected {list(expected.shape)}"
    if stored.dtype is None or not stored.dtype.is_floating_point:
        return f"{name} holds {stored.dtype or 'numbers of an unknown type'}, expected floating point"
    return None


def describe(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, read and checked, without building a network."""
    located = locate(str(path))
    contents = open_checkpoint(located.path)
    _check_sum(contents, located.path)
    layout = layout_of(contents, located.training)
    sets = [found for found in layout.sets if found.kind is not Kind.OPTIMISER]
    shapes = sets[0].shapes if sets else {}
    settings = settings_beside(located.path, contents.metadata, located.known, shapes, needed=False)
    config, family = settings.config, family_in(shapes)
    latent_shape = settings.latent_shape or (config.fixed_shape if config else None)
    for found in sets:
        for entry in found.tensors.values():
            entry.read()
    entries = {name: entry for found in sets[:1] for name, entry in found.tensors.items()}
    routers = of_routers(entries)
    return {
        "file": str(located.path),
        "format": contents.kind,
        "weights": [str(found) for found in sets] or [f"none of a {titles()}"],
        "tensors": len(entries),
        "parameters": sum(math.prod(entry.shape) for entry in entries.values()),
        "dtypes": sorted({str(entry.dtype).removeprefix("torch.") for entry in entries.values()}),
        "left out": _passed_over(layout, sets, family[0].published.TABLES if family else ()),
        "family": f"{family[0].published.TITLE}, by its {family[1]}" if family else "unknown",
        "configuration": _titled(config) if config else "unknown; give --config FILE.yaml",
        "latent shape": str(latent_shape) if latent_shape else "unknown",
        **({"kept between refreshes": _kept(config, latent_shape)} if config and latent_shape else {}),
        **({"widths": list(settings.widths)} if settings.widths else {}),
        **({"routers": f"{len(routers)} tensors, which decide what of a block runs when"} if routers else {}),
        "classes": list(settings.class_names) if settings.class_names else "unnamed",
    }


def _passed_over(layout: Layout, sets: list[WeightSet], tables: Collection[str]) -> str:
    names = [name for found in sets for name in layout.left_out(found, {*found.tensors, *tables})]
    others = [".".join(parts) for parts in layout.strays]
    return listed(list(dict.fromkeys([*names, *layout.signs, *(others if not sets else [])]))) or "nothing"
