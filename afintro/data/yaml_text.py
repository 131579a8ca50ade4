"""Read YAML in which no key of a mapping is named twice: YAML readers otherwise keep the last and say nothing."""

from typing import Any

import yaml
from yaml.constructor import ConstructorError


class _UniqueKeys(yaml.SafeLoader):  # type: ignore[misc]  # the library has no types
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Make a mapping; a merged mapping (``<<``) may hold a key again, which is what merging is for."""
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            key = key if not isinstance(key, list | dict) else str(key)
            if key in seen:
                raise ConstructorError(None, None, f"the key {key!r} is named twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_yaml(text: str | bytes) -> Any:
    """Read one document of plain values.

    Args:
        text: YAML or JSON; bytes are UTF-8, or UTF-16 with a byte order mark.

    Raises:
        yaml.YAMLError: The text is no YAML, or names a key twice in one mapping.
    """
    return yaml.load(text, Loader=_UniqueKeys)
