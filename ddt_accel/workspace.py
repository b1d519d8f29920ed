"""The folder that the commands share, so that no path needs typing."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddt_accel.artifacts import read_json, write_json
from ddt_accel.errors import ArtifactError, CheckpointError, ConfigError
from ddt_accel.locks import Say
from ddt_accel.networks.locate import embedded_models
from ddt_accel.schedule import Schedule

if TYPE_CHECKING:  # so that a workspace can be looked at without PyTorch, which takes seconds to load
    from ddt_accel.calibration.statistics import Calibration
    from ddt_accel.networks.split import SplitNetwork

FORMAT, VERSION = "ddt-accel workspace", 1
SETTINGS_NAME = "workspace.json"
SPEEDS_FORMAT, SPEEDS_VERSION = "ddt-accel speeds", 1
DEFAULT_MODEL = "cifar10"
NO_GUIDE = "none"  # what makes a workspace forget its guide


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which network the commands work on, and how it is loaded."""

    source: str = DEFAULT_MODEL
    config: str | None = None  # a published YAML
    weights: str = "ema"
    latent_shape: tuple[int, int, int] | None = None
    guide: str | None = None  # a second network that guides

    def load(self) -> SplitNetwork:
        from ddt_accel.networks.checkpoints import load_model

        return load_model(self.source, config=self.config, weights=self.weights, latent_shape=self.latent_shape)

    def load_guide(self) -> SplitNetwork | None:
        """The second network, where there is one.

        Its own header, YAML or weights say how it is built; the model's configuration, which may have a guide's beside
        it, only where they do not. Of several sets of weights it takes the averaged or raw ones as the model does.
        """
        from ddt_accel.networks.checkpoints import load_model

        if self.guide is None:
            return None
        weights = self.weights if self.weights in ("ema", "raw") else "ema"
        load = partial(load_model, self.guide, weights=weights, latent_shape=self.latent_shape)
        try:
            return load()
        except ConfigError as error:
            if self.config is None:
                raise
            try:
                return load(config=self.config)
            except (CheckpointError, ConfigError):
                raise error from None

    def resolved(self) -> ModelChoice:
        """The same from any folder: local paths are absolute. Links stay what they are: names and neighbours count."""
        return dataclasses.replace(
            self,
            source=_resolved(self.source),
            config=self.config and _absolute(self.config),
            guide=self.guide and _resolved(self.guide),
        )

    def document(self) -> dict[str, Any]:
        """What the workspace keeps; nothing of a guide where there is none, as in older files."""
        return {name: value for name, value in asdict(self).items() if name != "guide" or value is not None}


def _resolved(source: str) -> str:
    is_file = source not in embedded_models() and os.path.exists(os.path.expanduser(source))
    return _absolute(source) if is_file else source


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


class Workspace:
    """Names and finds the artefacts in a folder."""

    def __init__(self, folder: Path, say: Say | None = None) -> None:
        """`say` is told that the model cannot be remembered, where the folder cannot be written to; without it that is
        an error."""
        self.folder, self.say = folder, say
        self.calibration_path = folder / "calibration.safetensors"
        self.partial_path = folder / "calibration.partial.safetensors"
        self.schedule_path = folder / "schedule.json"
        self.curve_path = folder / "curve"
        self.costs_path = folder / "costs.json"
        self.export_path = folder / "export"
        self.engines_path = folder / "engines"
        self.timing_path = folder / "timing.cache"
        self.samples_path = folder / "samples"
        self.images_path = folder / "images"
        self.fit_path = folder / "fit"
        self.plans_path = folder / "plans"
        self.compared_path = folder / "compare"
        self.compared_unshared_path = folder / "compare-unshared"
        self.speeds_path = folder / "speeds.json"
        self._settings_path = folder / SETTINGS_NAME

    def load_model(self, said: Mapping[str, Any]) -> SplitNetwork:
        """The model of the last command that loaded one, or the default, but for what is `said`; it is remembered.

        `said` maps fields of ModelChoice to values. With a new `source` nothing of the last one is kept.
        """
        network = self.chosen(said).load()
        self._remember(said)
        return network

    def load_networks(self, said: Mapping[str, Any]) -> tuple[SplitNetwork, SplitNetwork | None]:
        """The model, and the second network that guides it, where one is chosen; raises MismatchError for one that
        cannot."""
        from ddt_accel.backends.guided import check_guide
        from ddt_accel.backends.pytorch import TorchBackend

        choice = self.chosen(said)
        network, guide = choice.load(), choice.load_guide()
        if guide is not None:
            check_guide(TorchBackend(network), TorchBackend(guide))
        self._remember(said)
        return network, guide

    def _remember(self, said: Mapping[str, Any]) -> None:
        choice = self.chosen(said).resolved()
        if said and choice != self.remembered():
            try:
                write_json(self._settings_path, FORMAT, VERSION, choice.document())
            except ArtifactError as error:
                if self.say is None:
                    raise
                self.say(f"The model is not remembered for later commands: {error}")

    def chosen(self, said: Mapping[str, Any]) -> ModelChoice:
        """What is `said`, the rest as remembered."""
        remembered = self.remembered()
        kept = ModelChoice() if remembered is None or "source" in said else remembered
        choice = dataclasses.replace(kept, **said)
        return dataclasses.replace(choice, guide=None) if choice.guide == NO_GUIDE else choice

    def calibration(self, path: Path | None = None) -> Calibration:
        from ddt_accel.calibration.statistics import Calibration

        path = path or self.calibration_path
        if not path.exists():
            raise ArtifactError(f"There is no calibration at {path}; make one with `ddt-accel calibrate`.")
        return Calibration.load(path)

    def schedule(self, path: Path | None = None) -> Schedule:
        return Schedule.load(path or self.schedule_path)

    def speeds(self, conditions: Mapping[str, Any]) -> tuple[int, dict[str, float]] | None:
        """Seconds of backends by name, and of which batch, if they were measured under these conditions.

        Larger batches than asked for will do: to measure again for a few images takes longer than to draw them.
        """
        try:
            kept, seconds = read_speeds(self.speeds_path)
        except ArtifactError:
            return None  # there is none, or none that is of use
        batch = int(kept["batch"])
        return (batch, seconds) if kept | {"batch": min(batch, conditions["batch"])} == conditions else None

    def keep_speeds(self, conditions: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
        content = {"conditions": dict(conditions), "seconds": dict(seconds)}
        write_json(self.speeds_path, SPEEDS_FORMAT, SPEEDS_VERSION, content)

    def remembered(self) -> ModelChoice | None:
        """The model of the last command that was given one."""
        if not self._settings_path.exists():
            return None
        content = read_json(self._settings_path, FORMAT, VERSION)
        try:
            shape = content.pop("latent_shape")
            return ModelChoice(**content, latent_shape=tuple(shape) if shape else None)
        except (TypeError, KeyError, ConfigError) as error:
            raise ArtifactError(f"{self._settings_path} makes no sense ({error}); remove it.") from None


def read_speeds(path: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """The conditions of a measurement of backends, and their seconds by name."""
    content = read_json(path, SPEEDS_FORMAT, SPEEDS_VERSION)
    try:
        seconds = {str(name): float(taken) for name, taken in content["seconds"].items()}
        if not seconds:
            raise ValueError("it names no backend")
        conditions = dict(content["conditions"])
        return conditions | {"batch": int(conditions["batch"])}, seconds
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} makes no sense ({error}); remove it.") from None
