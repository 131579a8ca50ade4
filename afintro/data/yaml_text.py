"""Read YAML in which no key of a mapping is named twice: YAML readers otherwise keep the last and say nothing.

Aliases (``*name``) that would make a small file into a huge value, or a value that holds itself, are refused too.
"""

from typing import Any

import yaml
from yaml.constructor import ConstructorError

LARGEST = 1_000_000  # values of a document, those behind aliases counted wherever they are named


class _UniqueKeys(yaml.SafeLoader):  # type: ignore[misc]  # the library has no types
    def construct_document(self, node: yaml.Node) -> Any:
        """Make the document, unless its aliases make it huge."""
        _size(node, {})
        return super().construct_document(node)

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


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Count the values of a node, those behind an alias wherever it stands; ``sizes`` holds what is counted, -1 while it is."""
    known = sizes.get(id(node))
    if known is not None:
        if known < 0:
            raise ConstructorError(None, None, "an alias names a value that holds the alias", node.start_mark)
        return known
    if isinstance(node, yaml.ScalarNode):
        return 1
    sizes[id(node)] = -1
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    size = 1 + sum(_size(part, sizes) for part in parts)
    if size > LARGEST:
        raise ConstructorError(None, None, f"aliases make more than {LARGEST:,} values of it", node.start_mark)
    sizes[id(node)] = size
    return size


def load_yaml(text: str | bytes) -> Any:
    """Read one document of plain values.

    Args:
        text: YAML or JSON; bytes are UTF-8, or UTF-16 with a byte order mark.

    Raises:
        yaml.YAMLError: The text is no YAML, names a key twice in one mapping, is nested too deeply, or has aliases that make
            it huge or endless.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeys)
    except RecursionError as error:
        raise yaml.YAMLError("is nested too deeply") from error
