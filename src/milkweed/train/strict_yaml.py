"""YAML as data: no tags that build objects, no key twice, and no more values than a person would write."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

LARGEST_FILE = 2**22
_MOST_VALUES = 100_000
_SEXAGESIMAL = re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?")
# As in YAML 1.2: `1e-3` is a number, `010` is ten and a date is a text.
_NUMBERS = {"int": re.compile(r"[-+]?\d[\d_]*"), "float": re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)[eE][-+]?\d+")}


class Texts(dict[Any, Any]):
    """A mapping that knows how its plain values were written: `007` for the number 7, `no` for false."""

    texts: dict[Any, str]


class TextList(list[Any]):
    """A list that knows it, by place."""

    texts: dict[Any, str]


def plain(value: Any) -> Any:
    """A copy of nested values in ordinary dictionaries and lists."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


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

    def construct_yaml_map(self, node: yaml.MappingNode) -> Iterator[Texts]:
        data = Texts()
        data.texts = {}
        yield data
        data.update(self.construct_mapping(node))
        data.texts |= {self.construct_object(key): text for key, value in node.value for text in _plain(value)}

    def construct_yaml_seq(self, node: yaml.SequenceNode) -> Iterator[TextList]:
        data = TextList()
        data.texts = {}
        yield data
        data.extend(self.construct_sequence(node))
        data.texts |= {place: text for place, value in enumerate(node.value) for text in _plain(value)}

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        kind = node.tag.rpartition(":")[2]
        if _SEXAGESIMAL.fullmatch(node.value):  # to YAML 1.1 a number to the base 60; here a time is a text
            return node.value
        if _NUMBERS["int"].fullmatch(node.value):
            return int(node.value.replace("_", ""))
        return self.construct_yaml_int(node) if kind == "int" else self.construct_yaml_float(node)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which alone would leave the text `1e3` without quotes."""


def _plain(node: yaml.Node) -> list[str]:
    """The text of a value written without quotes; none of any other."""
    return [node.value] if isinstance(node, yaml.ScalarNode) and node.style is None else []


for _kind, _form in _NUMBERS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_form.pattern})$"), [*"-+.0123456789"]
        )
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_yaml_map)
_Loader.add_constructor("tag:yaml.org,2002:seq", _Loader.construct_yaml_seq)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_yaml_str)


def read_value(text: str) -> Any:
    """Read one value as YAML; the text itself if it is none, or one without quotes: `run #1` has no comment."""
    try:
        value = read_yaml(text)
    except yaml.YAMLError:
        return text
    bare = text.strip()
    nothing = value is None and bare.lower() not in {"null", "~"}
    return text if nothing or (isinstance(value, str) and bare[:1] not in {"'", '"'}) else value


def write_yaml(value: Any) -> str:
    """Write plain values so that `read_yaml` gives the same."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


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
