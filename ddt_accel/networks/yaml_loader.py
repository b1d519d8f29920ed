"""How YAML is read: duplicates noticed, tags inert."""

from __future__ import annotations

from typing import Any

import yaml

from ddt_accel.errors import ConfigError


class Loader(yaml.SafeLoader):
    """Refuses what stands twice, and takes a value of an unknown tag without the tag."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                line = key.start_mark.line + 1
                if key.value in seen:
                    raise ConfigError(f"says {key.value} twice, in lines {seen[key.value]} and {line}; leave one")
                seen[key.value] = line
        return super().construct_mapping(node, deep)

    def untagged(self, _: str, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return self.construct_sequence(node, deep=True)
        return self.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None


Loader.add_multi_constructor("", Loader.untagged)
