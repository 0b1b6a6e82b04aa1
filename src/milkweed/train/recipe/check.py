"""The one check of options, from the command line or a recipe: their names, types and ranges, named as flags."""

import copy
import difflib
import importlib
import inspect
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from lightning.pytorch import LightningModule

from milkweed._registry import KINDS, registered
from milkweed._suggest import UsageError, unknown
from milkweed.train.densify import DensifyOptions
from milkweed.train.loggers import LOGGERS
from milkweed.train.recipe.build import BASES, class_of
from milkweed.train.recipe.schema import Option, Schema, in_words, kinds, options_of
from milkweed.train.recipe.words import FIXED, spec_kind, unknown_option
from milkweed.train.strict_yaml import read_value

_SCALARS = {int, float, bool, str, None, type(None), Any, typing.Literal}
SECTION_KEYS = ("class_path", "init_args", "dict_kwargs")
# Smallest values of the trainer's options, and what to write instead of a smaller one.
LEAST = {
    "accumulate_grad_batches": (1, "1 steps after every batch"),
    "check_val_every_n_epoch": (1, "--trainer.limit_val_batches 0 leaves validation out"),
    "checkpoint_every_n_steps": (1, "null saves after epochs only"),
    "gradient_clip_val": (0, "null clips nothing"),
    "log_every_n_steps": (0, "null leaves it to Lightning"),
}
# Options that take objects, and the module of Lightning that holds their classes.
OBJECTS = {"trainer.logger": "loggers", "trainer.callbacks": "callbacks", "trainer.profiler": "profilers"}


def checked(config: dict[str, Any], texts: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A copy of a recipe's values in the types of their options; `texts` is how values were typed, by natural name."""
    # A copy, as short names of classes become import paths.
    config = copy.deepcopy(config)
    for section in BASES:
        _check_class(section, config[section])
    for section in BASES:
        place = config[section].setdefault("init_args", {})
        if place is None:
            config[section]["init_args"] = {}
        elif not isinstance(place, dict):
            named = options_of({each: {"class_path": config[each]["class_path"]} for each in BASES})
            example = next((name for name in named if name.startswith(f"{section}.")), "x").rpartition(".")[2]
            raise UsageError(f"{section}.init_args={place!r} must be options by name, e.g. {{{example}: …}}")
    schema, texts = options_of(config), texts or {}
    for section in ("data", "model", "task", "trainer"):
        place = config[section] if section == "trainer" else config[section]["init_args"]
        _check_options(section, place, schema, texts)
    config["seed"] = _fit_seed(config.get("seed", 0), texts.get("seed"))
    _check_trainer(config["trainer"])
    return config


def _check_class(section: str, spec: dict[str, Any]) -> None:
    """Refuse strange keys, a misspelled short name, and a class of another kind than the section is for."""
    for key in spec:
        if key not in SECTION_KEYS:
            raise UsageError(unknown(f"{section}'s key", key, SECTION_KEYS))
    name, usable = spec.get("class_path"), registered(section)
    if name is None:
        raise UsageError(f"{section} lacks its class_path, one of {', '.join(usable)}, or an import path")
    if not isinstance(name, str) or ("." not in name and name not in usable):
        hint = unknown(f"--{section}", name, usable)
        layer = str(name).lower()
        if section == "model" and layer in registered("layer"):
            raise UsageError(f"--model={name} is no model but a layer; use --model.layer.name {layer}")
        raise UsageError(f"{hint}; an import path such as package.module.Class will do too")
    kind, base = class_of(section, name), BASES[section]
    if kind is None:
        return  # jsonargparse says why
    if not issubclass(kind, (base, LightningModule) if section == "task" else base):
        raise UsageError(
            f"{section}.class_path={name} is no {base.__name__}; make the class a subclass of "
            f"{base.__module__}.{base.__name__}"
        )
    if name in usable:  # it may be registered under another name than that of the class, or have a namesake
        package = KINDS[section]  # whose exports stay where they are when files move
        exported = getattr(importlib.import_module(package), kind.__name__, None) is kind
        spec["class_path"] = f"{package if exported else kind.__module__}.{kind.__qualname__}"


def _check_options(prefix: str, place: dict[str, Any], schema: Schema, texts: Mapping[str, str]) -> None:
    """Check names and types of the options in a mapping, in place, and of those within them."""
    written = getattr(place, "texts", {})
    for key, value in place.items():
        name = f"{prefix}.{key}"
        if name in FIXED:
            raise UsageError(f"--{name} cannot be set: {FIXED[name]}")
        if name not in schema:
            if prefix in schema.free:
                continue
            raise UsageError(_unknown(name, schema, place, texts))
        place[key] = fit(name, schema[name], value, texts.get(name, written.get(key)))
        if isinstance(place[key], dict) and schema.inner(name):
            _check_options(name, place[key], schema, texts)


def _unknown(name: str, schema: Schema, place: dict[str, Any], texts: Mapping[str, str]) -> str:
    """Say which option was probably meant by a name."""
    prefix, _, key = name.rpartition(".")
    if f"{prefix}.name" not in schema:
        return unknown_option(name, schema)
    known = [each.removeprefix(f"{prefix}.") for each in schema.inner(prefix)]
    if "name" not in place:
        raise UsageError(
            f"--{name} needs --{prefix}.name, {schema[f'{prefix}.name'].meaning[0].lower()}"
            f"{schema[f'{prefix}.name'].meaning[1:]}"
        )
    own, has = place["name"], ", ".join(known)
    if f"{prefix}.name" in texts and name not in texts:
        return (
            f"--{name}, which the recipe gives for another {spec_kind(prefix)}, is no option of {own}, "
            f'which has {has}; to leave out what the recipe gives, use --{prefix} "{{name: {own}}}"'
        )
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"unknown option --{name}; {f'did you mean {near[0]!r}? ' if near else ''}{own} has {has}"


def fit(name: str, option: Option, value: Any, text: str | None = None) -> Any:
    """A value in the type of its option: a text stays as it was written where the option takes texts."""
    parts = kinds(option.hint)
    if name in OBJECTS:
        _check_objects(name, value)
    owner, _, last = name.rpartition(".")
    if last == "name" and spec_kind(owner):
        _check_registered(name, spec_kind(owner), value)
    if any(_accepts(part, value) for part in parts) or (
        value == option.default and type(value) is type(option.default)
    ):
        return _fit_items(name, parts, value)
    if value is None and str in parts and option.default is not ...:
        return None  # null is no text, unless in quotes; what needs one says so
    if text is not None and value is not None and any(_accepts(part, text) for part in parts):
        return text
    if isinstance(value, str):
        read = read_value(value)
        if not isinstance(read, str) and any(_accepts(part, read) for part in parts):
            return read
    # Other classes are for jsonargparse to judge, except where no object of Lightning's can be made of a value.
    plain = isinstance(value, int | float) or (isinstance(value, str) and option.default is not ...)
    if not all(map(_known, parts)) and not (name in OBJECTS and plain):
        return value
    shown = text if text is not None and not isinstance(value, str) else repr(value)
    raise UsageError(f"--{name}={shown} does not fit; expected {in_words(option.hint)}{_instead(name, parts, value)}")


def _known(part: Any) -> bool:
    """Whether values of a type can be told from others here."""
    origin = typing.get_origin(part) or part
    return origin in _SCALARS or (isinstance(origin, type) and (issubclass(origin, PurePath) or _holds(origin)))


def _holds(origin: type) -> bool:
    """Whether a type is one of Python's own containers."""
    return origin.__module__ in {"builtins", "collections.abc"} and issubclass(origin, Iterable) and origin is not str


def _accepts(part: Any, value: Any) -> bool:
    """Whether a value is of a type, where 1 is a float but true is no number."""
    origin = typing.get_origin(part) or part
    if origin is Any:
        return True
    if origin is typing.Literal:
        return any(value == each and type(value) is type(each) for each in typing.get_args(part))
    if origin in {int, float, bool, str}:
        return type(value) is origin or (origin is float and type(value) is int)
    if origin in {None, type(None)}:
        return value is None
    if not isinstance(origin, type) or not _known(part):
        return False
    if issubclass(origin, PurePath):
        return type(value) is str
    return isinstance(value, dict if issubclass(origin, Mapping) else list)


def _fit_items(name: str, parts: list[Any], value: Any) -> Any:
    """The same for each item of a list."""
    inner = [typing.get_args(part) for part in parts if _accepts(part, value)]
    if not isinstance(value, list) or len(inner) != 1 or len(set(inner[0]) - {...}) != 1:
        return value
    texts = getattr(value, "texts", {})
    return [fit(name, Option(inner[0][0], ...), each, texts.get(place)) for place, each in enumerate(value)]


def _check_registered(name: str, kind: str, value: Any) -> None:
    known = registered(kind)
    if not isinstance(value, str) or value not in known:
        own = "a class of your own needs milkweed --import MODULE before the command, where MODULE registers it"
        raise UsageError(f"{unknown(f'--{name}', value, known)}; {own}")


def _instead(name: str, parts: list[Any], value: Any) -> str:
    """How a value of the wrong type would be written, as the end of a sentence; empty if nobody can tell."""
    last = name.rpartition(".")[2]
    if isinstance(value, str) and spec_kind(last) and value.replace("_", "").isalnum():
        return f"; use --{name}.name {value}, or in a recipe {last}: {{name: {value}}}"
    if name in OBJECTS:
        return _meant_object(name, value) if isinstance(value, str) and value.isalnum() else ""
    choices = [
        str(each) for part in parts if typing.get_origin(part) is typing.Literal for each in typing.get_args(part)
    ]
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}?"
    if bool in parts:
        return "; use true or false"
    if int in parts:
        digits = (
            str(int(value)) if isinstance(value, float) and value.is_integer() else re.sub(r"[\s,']", "", str(value))
        )
        plain = re.fullmatch(r"[-+]?\d+", digits) and not isinstance(value, list)
        return f"; use --{name} {int(digits)}" if plain else ""
    if any(_accepts(part, []) for part in parts) and not isinstance(value, dict):
        return f'; use --{name} "[{value}]"'
    return ""


def _check_objects(name: str, value: Any) -> None:
    """Refuse, among objects of Lightning, a bare name, and a short class path without what its class needs."""
    module = importlib.import_module(f"lightning.pytorch.{OBJECTS[name]}")
    for each in value if isinstance(value, list) else [value] if isinstance(value, dict) else []:
        given = each.get("class_path") if isinstance(each, dict) else each
        if given is each and name == "trainer.logger" and given in LOGGERS:
            continue
        if not isinstance(given, str) or not given.isidentifier():
            continue
        arguments = each.get("init_args") or {} if isinstance(each, dict) else {}
        if given is each or (given in module.__all__ and set(_needed(getattr(module, given))) - {*arguments}):
            raise UsageError(f"--{name}={each!r} does not fit{_meant_object(name, given)}")


def _needed(kind: type) -> list[str]:
    """Names of the arguments that a class cannot do without."""
    parameters = inspect.signature(kind).parameters.values()
    return [each.name for each in parameters if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]


def _meant_object(name: str, given: str) -> str:
    """How an object of Lightning is asked for, as the end of a sentence."""
    near = difflib.get_close_matches(given, LOGGERS, n=1, cutoff=0.6) if name == "trainer.logger" else []
    if near:
        return f"; did you mean {near[0]}?"
    module = importlib.import_module(f"lightning.pytorch.{OBJECTS[name]}")
    found = [each for each in module.__all__ if given.lower() in each.lower()]
    if not found:
        return f"; use {{class_path: lightning.pytorch.{OBJECTS[name]}.NAME, init_args: {{…}}}}"
    needed = _needed(getattr(module, found[0]))[:1]
    arguments = "".join(f", init_args: {{{each}: {'logs' if each == 'save_dir' else '…'}}}" for each in needed)
    spec = f"{{class_path: lightning.pytorch.{OBJECTS[name]}.{found[0]}{arguments}}}"
    return f'; use --{name} "{f"[{spec}]" if name.endswith("callbacks") else spec}"'


def _fit_seed(seed: Any, text: str | None = None) -> int:
    """Refuse a seed that is none, and say how to train with several."""
    if type(seed) is int and 0 <= seed < 2**32:
        return seed
    several = re.findall(r"\d+", str(seed)) if isinstance(seed, str | list) else []
    fix = f"; train once for each: milkweed sweep RECIPE --seeds {','.join(several)}"
    shown = text if text is not None and isinstance(seed, float) else repr(seed)
    fix = fix if several[1:] else _instead("seed", [int], seed) if isinstance(seed, float) else ""
    raise UsageError(f"--seed={shown} does not fit; expected int, from 0 to 4294967295{fix}")


def _check_trainer(options: dict[str, Any]) -> None:
    """Refuse numbers that Lightning takes and then divides by, and wrong options of `densify`."""
    for name, (least, instead) in LEAST.items():
        value = options.get(name)
        if isinstance(value, int | float) and not value >= least:
            raise UsageError(f"--trainer.{name}={value} must be at least {least}; {instead}")
    interval = options.get("val_check_interval")
    if isinstance(interval, int | float) and not interval > 0:
        raise UsageError(
            f"--trainer.val_check_interval={interval} must be above 0: batches between validations, or up to 1.0 a "
            "share of an epoch; null validates after epochs"
        )
    for name, value in options.items():
        if name.startswith("limit_") and isinstance(value, float) and not 0 <= value <= 1:
            raise UsageError(f"--trainer.{name}={value} must be a whole number of batches, or from 0.0 to 1.0 a share")
    if type(options.get("devices")) is int and options["devices"] == 0:
        raise UsageError("--trainer.devices=0 must be at least 1; -1 takes all")
    densify = options.get("densify")
    if densify is not None and not isinstance(densify, dict):
        raise UsageError(
            f"--trainer.densify={densify!r} must be null or options such as {{at: 0.9}}; on the command line "
            "--trainer.densify.at 0.9"
        )
    if densify:
        DensifyOptions(**densify)


def readable_type_error(text: str) -> str | None:
    """Shorten jsonargparse's report on a class or a value of the wrong type; None if it reports something else."""
    missing = re.search(r"given class_path '(.+)':\s+(No module named .+|.*has no attribute .+)", text)
    if missing:
        return f"{missing[1]} cannot be imported: {missing[2].strip()}; give the path by which Python imports the class"
    other = re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", text)
    if other:
        return f"{other[1]} is no {other[2]}; give the import path of a class that is one"
    keys = re.findall(r'Parser key "([^"]+)"', text)
    expected = r"Expected a (?:<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.+?)\])"
    found = list(dict.fromkeys(re.findall(expected, text)))
    given = re.search(r"(?:Got|Given) value: (.+)", text)
    if not (keys and found and given):
        return None
    name = re.sub(r"^optimisation\b", "task", ".".join(keys).replace(".init_args", ""))
    words = " or ".join("null" if kind == "NoneType" else kind or choices for kind, choices in found)
    return f"--{name}={given[1]!r} does not fit; expected {words}"
