"""Configuration files as people and tools write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY

from ddt_accel.errors import ConfigError
from ddt_accel.networks.families import as_mapping
from ddt_accel.networks.settings import read_yaml

SETTINGS = as_mapping(TINY)


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.mark.parametrize(
    "content",
    [
        SETTINGS,
        {"model": SETTINGS, "data": {"latent_shape": None}},
        {"model": {"denoiser": {"class_path": "DDT", "init_args": SETTINGS}}},
        {"network": {"net": [{"params": SETTINGS}]}},
        {name: str(value) for name, value in SETTINGS.items()},
        {**SETTINGS, "num_classes": " 4"},
        # What is published stands before what else is complete.
        {"other": {**SETTINGS, "num_classes": 9}, "model": {"denoiser": {"init_args": SETTINGS}}},
        {"a": SETTINGS, "b": SETTINGS},
    ],
)
def test_settings_in_any_place(tmp_path: Path, content: dict[str, Any]) -> None:
    assert read_yaml(written(tmp_path / "x.yaml", content)).config == TINY


@pytest.mark.parametrize("other", ["${env:X}", "???", "${nowhere}", "ten"])
def test_what_is_published_is_taken_whatever_else_there_is(tmp_path: Path, other: str) -> None:
    content = {
        "old": {**SETTINGS, "num_classes": other, "latent_shape": other},
        "model": {"denoiser": {"init_args": SETTINGS}},
        "data": {"latent_shape": [3, 8, 8]},
    }
    told = read_yaml(written(tmp_path / "x.yaml", content))
    assert (told.config, told.latent_shape) == (TINY, (3, 8, 8))
    content["data"] = {"latent_shape": "bad"}
    with pytest.raises(ConfigError, match="latent_shape is 'bad'"):
        read_yaml(written(tmp_path / "x.yaml", content))


@pytest.mark.parametrize(
    ("classes", "latent_shape"),
    [
        ("${data.num_classes}", "${data.shape}"),
        ("${ data.num_classes }", ["${data.shape[0]}", "${..shape[1]}", "8"]),
        ("${..twice}", "${.shape}"),
        ("${model.same}", ["${..shape.0}", 8, "8"]),
        ("${data.${data.which}}", "${data.nested.shape}"),
        ("${data.list.0.n}", "${data[shape]}"),
    ],
)
def test_interpolation(tmp_path: Path, classes: str, latent_shape: Any) -> None:
    content = {
        "data": {
            "num_classes": 4, "shape": [3, 8, 8], "which": "num_classes", "latent_shape": latent_shape,
            "nested": "${data}", "list": [{"n": "${data.num_classes}"}], "home": "${oc.env:HOME}",
        },
        "model": {"same": "${data.num_classes}", "twice": "${.same}", "args": {**SETTINGS, "num_classes": classes}},
        "loop": "${loop}",
    }  # fmt: skip
    told = read_yaml(written(tmp_path / "x.yaml", content))
    assert told.config == TINY
    assert told.latent_shape == (3, 8, 8)


DOUBLING = {"x0": ""} | {f"x{n}": f"${{x{n - 1}}}" * 2 for n in range(1, 31)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"services": {}, "model": {"target": "x", "params": {}}, "a": 1},
            r"it has services, model \(target, params\), a\.",
        ),
        (
            {"model": {"net": {"hidden_size": 3, "num_blocks": 2}}},
            "net has hidden_size, num_blocks and lacks in_",
        ),
        ("", "it has nothing"),
        ("just text", "only str at its top"),
        ({"a": SETTINGS, "b": {**SETTINGS, "num_classes": 9}}, "different settings in a, b"),
        ({**SETTINGS, "num_classes": "ten"}, "num_classes is 'ten'"),
        ({**SETTINGS, "num_classes": None}, "num_classes is None"),
        ({**SETTINGS, "num_classes": "???"}, "num_classes is ???, which has to be filled in"),
        ({**SETTINGS, "num_classes": "${data.n}"}, r"num_classes is \$\{data\.n\}, and there is no data\.n"),
        ({**SETTINGS, "num_classes": "${eval:2*2}"}, "nothing is executed"),
        ({**SETTINGS, "num_classes": "${num_classes}"}, "circle: num_classes → num_classes"),
        ({**SETTINGS, "num_classes": "${x}", "x": "${y}", "y": "${x}"}, "circle"),
        (
            {**SETTINGS, "num_classes": "${x31}", "x0": "", **{f"x{n}": f"${{x{n - 1}}}" * 2 for n in range(1, 32)}},
            "circle",
        ),
        ({**SETTINGS, "latent_shape": "4x32x32"}, "three numbers are expected"),
        ("model:\n\tnum_blocks: 3\n", r"line 2 \(YAML indents by spaces\)"),
        ("model:\n  a: 1\n  b: 2\n  a: 3\n", "says a twice, in lines 2 and 4"),
        ("a: [1, 2", "is no YAML"),
        ("a: &a [*a]", "it has a"),
        ("a: *b", "undefined alias"),
        ("[" * 400, "is no YAML"),
        ("a: \x00", "is no YAML"),
        ("? [1]\n: 2", "is no YAML"),
        ("a: 2020-99-99", "is no YAML"),
        ("model: !!python/object/apply:os.system ['true']", "it has model"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("???", r"\?\?\?")) as caught:
        read_yaml(written(tmp_path / "x.yaml", content))
    assert str(caught.value).startswith(str(tmp_path / "x.yaml"))
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value)


def test_marks_tags_and_merges(tmp_path: Path) -> None:
    lines = "".join(f"  {name}: {value}\n" for name, value in SETTINGS.items())
    text = f"base: &base\n{lines}model:\n  <<: *base\n  num_classes: 4\nlatent_shape: !!python/tuple [3, 8, 8]\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "x.yaml").write_bytes((text + "name: !Custom {a: é}\n").encode(encoding))
        assert read_yaml(tmp_path / "x.yaml").config == TINY
        assert read_yaml(tmp_path / "x.yaml").latent_shape == (3, 8, 8)
    (tmp_path / "x.yaml").write_bytes((text + "name: é").encode("latin-1"))
    with pytest.raises(ConfigError, match="is no YAML"):
        read_yaml(tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)
