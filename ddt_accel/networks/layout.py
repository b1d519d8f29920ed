"""Which tensors of a checkpoint are the network's weights, and which of its sets of weights is which.

Training scripts name things as they like. What they have in common is the network's own names, so these are looked for:
tensors with one prefix (the keys of the dicts around them count) under which the network's names stand are a *set* of
weights, whatever the prefix. Names that wrappers of modules put in between are passed over.

A prefix says what a set is. The last part of it that speaks of averaging (`ema`, `model_ema`, `ema_weights`,
`shadow_params`, `swa`, …), of raw weights (`online_model`, `current_model_state`, …) or of an optimiser decides; what
all sets have in common says nothing. A count of averaged models (`n_averaged`) marks an average, and so does standing
as `state_dict` beside Lightning's `current_model_state`. An average without names (a list in the order of the raw
weights) or with names without dots takes the names of the raw weights where number and shapes fit.

The rule for `--weights ema`, the default, is that raw weights are never taken for the average without a word:

- One average is taken.
- Where none can be told, a single set is taken if nothing suggests that it is one of a pair: a plain state_dict, a
  released file. It suggests so to be called raw (the published `denoiser.` is), to stand beside optimiser states or
  other tensors that are not its own, or beside an empty place for an average. Then nothing is taken, and the message
  says what there is.
- Of several that qualify, none is taken, unless they are equal. `--weights NAME` takes the set of that very name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch

from ddt_accel.errors import CheckpointError, ConfigError, listed
from ddt_accel.networks.contents import Contents, Entry, Keys
from ddt_accel.networks.families import FAMILIES, titles
from ddt_accel.networks.naming import Kind, kind_of, said_by
from ddt_accel.networks.releases import Shapes

# The first parts of a network's own names: those that all families have, and others that some have.
NETWORK = frozenset({"x_embedder", "s_embedder", "t_embedder", "y_embedder", "blocks", "final_layer"})
_OWN = NETWORK.union(*(family.published.PARTS for family in FAMILIES.values()))
_TABLES = {name for family in FAMILIES.values() for name in family.published.TABLES}
# The published names of the two sets in one state_dict.
EMA, RAW = "ema_denoiser.", "denoiser."

# Tensors by the parts of their names, with the keys of the dicts around them.
Strays = dict[Keys, tuple[Keys, Entry]]


@dataclass
class WeightSet:
    """Weights of one network; `tensors` by its own names, all `members` in the order of the file."""

    prefix: Keys
    place: Keys  # the keys of the dicts that all of it lies in
    kind: Kind = Kind.UNSAID
    tensors: dict[str, Entry] = field(default_factory=dict)
    members: dict[str, Entry] = field(default_factory=dict)
    written: dict[str, Keys] = field(default_factory=dict)  # all parts of their names in the file
    doubled: list[str] = field(default_factory=list)  # names that several tensors have

    @property
    def name(self) -> str:
        return ".".join(self.prefix) or "unnamed"

    @property
    def shapes(self) -> Shapes:
        """Of all that stands among the weights, tables and heads of the training included."""
        return {name: entry.shape for name, entry in self.members.items()}

    def __str__(self) -> str:
        return f"{self.name} ({self.kind.value})" if self.kind in (Kind.AVERAGE, Kind.RAW) else self.name

    def equals(self, other: WeightSet) -> bool:
        """Whether it has the same contents."""
        return self.tensors == other.tensors or (
            self.tensors.keys() == other.tensors.keys()
            and all(
                torch.equal(entry.read().float(), other.tensors[name].read().float())
                for name, entry in self.tensors.items()
            )
        )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The sets of weights in a checkpoint, and what is beside them.

    `strays` are tensors that belong to no set, by their whole names. `signs` say, each in a few words, that the file
    was written in the middle of a training.
    """

    sets: tuple[WeightSet, ...]
    strays: Strays
    signs: tuple[str, ...]

    def left_out(self, chosen: WeightSet, used: Collection[str] | None = None) -> list[str]:
        """What stands among the chosen weights and is none of the network: counters, heads of the training.

        The network's are those `used`, by its own names, else all that have a name of its.
        """
        used = chosen.tensors if used is None else used
        own = [(*chosen.prefix, *name.split(".")) for name in chosen.members if name not in used]
        beside = [parts for parts, (keys, _) in self.strays.items() if keys[: len(chosen.place)] == chosen.place]
        return [".".join(parts) for parts in own + beside if kind_of(parts) is not Kind.OPTIMISER]


def layout_of(contents: Contents, beside: Sequence[str] = ()) -> Layout:
    """Tells apart what a checkpoint holds; `beside` names files of a training that lie in the same folder."""
    entries = [(_parts(keys), keys, entry) for keys, entry in contents.tensors if "".join(keys)]
    sets = _sets(entries)
    strays: Strays = {}
    for parts, keys, entry in entries:
        home = _home(parts, keys, sets)
        if home is None:
            strays[parts] = keys, entry
        else:
            name = ".".join(parts[len(home.prefix) :])
            if home.members.setdefault(name, entry) != entry:
                home.doubled.append(name)
            home.written[name] = _split(keys)
            if parts[len(home.prefix)] in _OWN:
                home.tensors.setdefault(name, entry)
    nameless = _nameless(strays, sets)
    _tell(sets, nameless, [parts[:-1] for parts, _, _ in entries if parts[-1] == "n_averaged"])
    for average in nameless:
        if average.kind is Kind.AVERAGE:
            sets.append(average)
            strays = {parts: stray for parts, stray in strays.items() if parts[:-1] != average.prefix}
    return Layout(sets=tuple(sets), strays=strays, signs=tuple(_signs(contents, sets, strays, beside)))


def _parts(keys: Keys) -> Keys:
    """The parts of a tensor's name, without those of wrappers: `module`, and names that begin with an underscore."""
    parts = _split(keys)
    wrapped = [part for part in parts[:-1] if part != "module" and (not part.startswith("_") or said_by(part))]
    return (*wrapped, *parts[-1:])


def _split(keys: Keys) -> Keys:
    return tuple(part for key in keys for part in key.split(".") if part)


def _sets(entries: list[tuple[Keys, Keys, Entry]]) -> list[WeightSet]:
    """The prefixes under which at least half of the network's parts stand."""
    found: dict[Keys, tuple[set[str], Keys]] = {}
    for parts, keys, _ in entries:
        first = next((index for index, part in enumerate(parts) if part in NETWORK), None)
        if first is not None:
            roots, place = found.get(parts[:first], (set(), keys[:-1]))
            found[parts[:first]] = roots | {parts[first]}, _common([place, keys[:-1]])
    return [WeightSet(prefix, place) for prefix, (roots, place) in found.items() if 2 * len(roots) >= len(NETWORK)]


def _common(sequences: Sequence[Keys]) -> Keys:
    """What all begin with."""
    together = zip(*sequences, strict=False)
    same = [len(set(parts)) == 1 for parts in together]
    return sequences[0][: same.index(False) if False in same else len(same)]


def _home(parts: Keys, keys: Keys, sets: list[WeightSet]) -> WeightSet | None:
    """The set that a tensor stands in: that of the longest prefix, in the same dicts."""
    homes = [
        found
        for found in sets
        if parts[: len(found.prefix)] == found.prefix
        and len(parts) > len(found.prefix)
        and keys[: len(found.place)] == found.place
    ]
    return max(homes, key=lambda found: len(found.prefix), default=None)


def _nameless(strays: Strays, sets: list[WeightSet]) -> list[WeightSet]:
    """Lists of tensors, and dicts without dotted names, by the names of a set that they are a copy of."""
    groups: dict[Keys, dict[str, Entry]] = {}
    for parts, (_, entry) in strays.items():
        groups.setdefault(parts[:-1], {})[parts[-1]] = entry
    found = []
    for group, stored in groups.items():
        for model in (model for model in sets if len(model.tensors) <= len(stored)):
            named = _in_order(stored, model) or _without_dots(stored, model)
            if named and all(named[name].shape == model.members[name].shape for name in named):
                own = {name: entry for name, entry in named.items() if name in model.tensors}
                place = next(keys for parts, (keys, _) in strays.items() if parts[:-1] == group)[:-1]
                tables = {name: entry for name, entry in model.members.items() if name in _TABLES}
                found.append(WeightSet(group, place, tensors=own, members=tables | named))
                break
    return found


def _in_order(stored: dict[str, Entry], model: WeightSet) -> dict[str, Entry]:
    """A list in the order of the parameters, heads included: diffusers' EMAModel, torch-ema.

    Such a list has no tables, which the raw weights may have among them.
    """
    names = [name for name, entry in model.members.items() if entry.dtype and entry.dtype.is_floating_point]
    for held in (names, [name for name in names if name in model.tensors]):
        if list(stored) == [str(index) for index in range(len(held))]:
            return dict(zip(held, stored.values(), strict=True))
    return {}


def _without_dots(stored: dict[str, Entry], model: WeightSet) -> dict[str, Entry]:
    """Buffers named as the parameters, whose dots PyTorch does not allow there: latent diffusion's LitEma."""
    for start in range(min(len(model.written[name]) for name in model.tensors)):
        names = {name: "".join(model.written[name][start:]) for name in model.tensors}
        if all(name in stored for name in names.values()):
            return {name: stored[squeezed] for name, squeezed in names.items()}
    return {}


def _tell(sets: list[WeightSet], nameless: list[WeightSet], counted: list[Keys]) -> None:
    """Says of each what it is; `counted` are the places that have a count of averaged models."""
    every = [*sets, *nameless]
    shared = len(_common([found.prefix for found in every])) if len(every) > 1 else 0
    for found in every:
        found.kind = kind_of(found.prefix[shared:])
    for place in counted:
        models = [found for found in sets if found.kind is not Kind.OPTIMISER]
        inside = [found for found in models if found.prefix[: len(place)] == place]
        if len(inside) == 1 or len(inside) < len(models):
            for found in inside:
                found.kind = Kind.AVERAGE
    prefixes = {found.prefix: found for found in sets}
    for prefix in prefixes:
        other = tuple("state_dict" if part == "current_model_state" else part for part in prefix)
        if other != prefix and other in prefixes and prefixes[other].kind is Kind.UNSAID:
            prefixes[other].kind = Kind.AVERAGE
    unsaid = [found for found in sets if found.kind is Kind.UNSAID]
    beside_average = len(unsaid) == 1 and any(found.kind is Kind.AVERAGE for found in every)
    for found in unsaid:
        if beside_average or found.prefix[-1:] == (RAW.rstrip("."),):
            found.kind = Kind.RAW


def _signs(contents: Contents, sets: list[WeightSet], strays: Strays, beside: Sequence[str]) -> list[str]:
    signs = []
    optimisers = [key for key, filled in contents.vacant.items() if filled and said_by(key) is Kind.OPTIMISER]
    inside = [parts for found in sets for name in found.members if (parts := (*found.prefix, *name.split(".")))]
    optimisers += [".".join(parts) for parts in (*strays, *inside) if kind_of(parts) is Kind.OPTIMISER]
    if optimisers:
        signs.append(f"states of an optimiser ({_first(optimisers)})")
    empty = [key for key in contents.vacant if said_by(key) is Kind.AVERAGE]
    if empty:
        signs.append(f"an empty place for an average ({listed(empty)})")
    lists = _averaged_lists(strays)
    signs += [
        f"a list of {count} averaged tensors without names ({'.'.join(group)}), which cannot be told apart, as their "
        "number or shapes are not those of the raw weights in their order (these may be sorted, or have buffers among "
        "them); save the average with its names"
        for group, count in lists.items()
    ]
    others = [
        ".".join(parts)
        for parts, (_, entry) in strays.items()
        if parts[:-1] not in lists
        and math.prod(entry.shape) > 1
        and (entry.dtype is None or entry.dtype.is_floating_point)  # no states of random generators, no indices
        and kind_of(parts) is not Kind.OPTIMISER
    ]
    if others:
        signs.append(f"tensors that are not the network's ({listed(others)})")
    if beside:
        signs.append(f"the files of a training in its folder ({listed(beside)})")
    return signs


def _averaged_lists(strays: Strays) -> dict[Keys, int]:
    """Where averages are lists, with how many tensors."""
    groups: dict[Keys, list[str]] = {}
    for parts in strays:
        groups.setdefault(parts[:-1], []).append(parts[-1])
    return {
        group: len(names)
        for group, names in groups.items()
        if kind_of(group) is Kind.AVERAGE and len(names) > 1 and names == [str(index) for index in range(len(names))]
    }


def _first(names: list[str]) -> str:
    """The first part of the first name: where optimiser states begin is enough."""
    return names[0].split(".")[0]


def choose(layout: Layout, weights: str, path: object) -> WeightSet:
    """The set of `weights`: "ema", "raw", or the name of one; see the module's docstring for the rule."""
    sets = [found for found in layout.sets if found.kind is not Kind.OPTIMISER]
    if not sets:
        names = [".".join(parts) for parts in layout.strays]
        held = f"{len(names)} tensors ({listed(names)})" if names else "no tensors"
        raise CheckpointError(
            f"{path} holds no state_dict of a {titles()}, whose tensors are named {', '.join(sorted(NETWORK))}.*; it "
            f"holds {held}."
        )
    if named := [found for found in sets if found.name == weights]:
        return _undoubled(named[0], path)
    if weights not in ("ema", "raw"):
        raise ConfigError(
            f"--weights is {weights!r}; choose 'ema', 'raw' or the name of a set in {path}: "
            f"{listed([found.name for found in sets])}."
        )
    wanted, other = (Kind.AVERAGE, Kind.RAW) if weights == "ema" else (Kind.RAW, Kind.AVERAGE)
    for kind in (wanted, Kind.UNSAID):
        found = _distinct([found for found in sets if found.kind is kind])
        if len(found) > 1:
            raise CheckpointError(
                f"{path} holds several sets of weights, {listed([str(one) for one in found])}, and nothing says which "
                f"of them is {'the average' if weights == 'ema' else 'the raw one'}; --weights NAME takes one, such as "
                f"--weights {found[0].name} (weights={found[0].name!r} in Python)."
            )
        if found and (kind is wanted or weights == "raw" or not (layout.signs or len(_distinct(sets)) > 1)):
            return _undoubled(found[0], path)
    there = [*(str(found) for found in sets), *layout.signs]
    opposite = "raw" if weights == "ema" else "ema"
    raise CheckpointError(
        f"No {wanted.value} weights were found in {path}. There is: {'; '.join(there)}. --weights {opposite} takes the "
        f"{other.value} ones (weights={opposite!r} in Python)."
    )


def _distinct(sets: list[WeightSet]) -> list[WeightSet]:
    """Those that differ; contents are compared only where there are several."""
    kept: list[WeightSet] = []
    for found in sets:
        if not any(found.equals(earlier) for earlier in kept):
            kept.append(found)
    return kept


def _undoubled(chosen: WeightSet, path: object) -> WeightSet:
    if chosen.doubled:
        raise CheckpointError(
            f"{path} holds several tensors under one name in its weights {chosen.name}: {listed(chosen.doubled)}; "
            "save its state_dict on its own."
        )
    return chosen
