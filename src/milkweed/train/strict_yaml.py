"""YAML as data: no tags that build objects, no key twice, and no more values than a person would write."""

import re
from typing import Any

import yaml

LARGEST_FILE = 2**22
_MOST_VALUES = 100_000


SEXAGESIMAL = re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?")
"""To YAML 1.1 a number to the base 60; here a time, such as `1:30:00`, is a text."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which alone would take the last of equal keys in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.construct_object(key)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is there twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        if SEXAGESIMAL.fullmatch(node.value):
            return node.value
        kind = node.tag.rpartition(":")[2]
        return self.construct_yaml_int(node) if kind == "int" else self.construct_yaml_float(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def read_yaml(text: str) -> Any:
    """Read a YAML document as dictionaries, lists and plain values.

    Refused are Python objects, keys that stand twice, and what is nested too deep or has too many values; aliases count
    as often as they are used.
    """
    if len(text) > LARGEST_FILE:
        raise yaml.YAMLError(f"it has {len(text):,} characters, more than any recipe")
    try:
        content = yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deep") from None
    except ValueError as error:  # e.g. a date that does not exist
        raise yaml.YAMLError(str(error)) from error
    waiting, count = [content], 0
    while waiting:
        each = waiting.pop()
        count += 1
        if count > _MOST_VALUES:
            raise yaml.YAMLError(f"it stands for more than {_MOST_VALUES:,} values")
        if isinstance(each, dict):
            waiting.extend(each.values())
        elif isinstance(each, list | tuple | set):
            waiting.extend(each)
    return content
