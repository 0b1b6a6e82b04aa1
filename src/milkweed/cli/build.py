"""From a recipe and what the command line changes in it to a configuration with every option."""

from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from milkweed.cli.options import Overrides, apply_overrides
from milkweed.train.recipe.build import BASES, complete
from milkweed.train.recipe.check import checked, readable_type_error
from milkweed.train.run_config import WAY_OUT, StoredConfig, check_complete


def resolve(values: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """Complete a recipe, or a run's config.yaml, by all defaults, change it, and check names, types and ranges."""
    chosen = [(name.removesuffix(".class_path"), value) for name, value in overrides if _names_class(name)]
    others = [(name, value) for name, value in overrides if not _names_class(name)]
    with blamed_on(values):
        config = values | {name: {"class_path": value, "init_args": {}} for name, value in chosen}
        config = complete(checked(config))
        if isinstance(values, StoredConfig):
            check_complete(values, config, [name for name, _ in (*chosen, *others)])
    return complete(checked(apply_overrides(config, others), getattr(overrides, "texts", {})))


def _names_class(name: str) -> bool:
    """Whether an option chooses a class, e.g. `--model MlpMixer`."""
    return name.removesuffix(".class_path") in BASES


@contextmanager
def blamed_on(values: dict[str, Any]) -> Iterator[None]:
    """Say that an error may come from a config.yaml that is not known to be whole, if that is what the block reads."""
    try:
        yield
    except (ValueError, TypeError, ArgumentError) as error:
        if not isinstance(values, StoredConfig) or values.whole or str(values.path) in str(error):
            raise
        text = readable_type_error(str(error)) or str(error)
        raise ValueError(f"{values.path} does not fit ({text}), and may be damaged; {WAY_OUT}") from error
