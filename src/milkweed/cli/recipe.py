"""Finding and reading recipes."""

import sys
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from milkweed._suggest import UsageError, unknown
from milkweed.train.recipe.words import SECTIONS


@dataclass(frozen=True)
class Recipe:
    """A recipe as it was written."""

    name: str
    description: str
    values: dict[str, Any]
    typed: str = ""


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the library."""
    folder = Path(str(resources.files("milkweed.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def find_recipe(name: str) -> Recipe:
    """Read a shipped recipe, or one from a YAML file."""
    shipped = shipped_recipes()
    if name in shipped:
        return replace(read_recipe(shipped[name]), typed=name)
    if Path(name).suffix in {".yaml", ".yml"}:
        if not Path(name).is_file():
            raise UsageError(f"recipe file {name} does not exist; `milkweed recipes` lists the shipped ones")
        _let_import_from(Path(name).resolve().parent)
        return replace(read_recipe(Path(name)), typed=name)
    if is_run(name):
        raise UsageError(
            f"{name} is the folder of a run, not a recipe; name {Path(name) / 'config.yaml'} for what it was trained "
            f"with, go on with it by `milkweed train RECIPE --name {Path(name).name} --resume auto`, or test it by "
            f"`milkweed evaluate {name}`"
        )
    if len(Path(name).parts) > 1:
        raise UsageError(
            f"{name} is neither a recipe file (.yaml) nor the folder of a run; "
            "`milkweed recipes` lists the shipped recipes"
        )
    raise UsageError(f"{unknown('recipe', name, shipped)}. A path to a YAML file will do too")


def _let_import_from(folder: Path) -> None:
    """Let a user's recipe name classes in modules beside it; a run's config.yaml is data and gets no such right."""
    if not is_run(folder) and str(folder) not in sys.path:
        sys.path.append(str(folder))


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file."""
    import yaml

    from milkweed.train.strict_yaml import read_yaml

    try:
        text = path.read_text(encoding="utf-8")
        values = read_yaml(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} is no valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"recipe {path} must have the keys seed, {', '.join(SECTIONS)}")
    for key in values:
        if key not in ("seed", *SECTIONS):
            raise UsageError(f"recipe {path}: {unknown('key', key, ('seed', *SECTIONS))}")
    for key in SECTIONS:
        if not isinstance(values.get(key), dict):
            raise UsageError(f"recipe {path} lacks the section {key}; the shipped recipes show how it looks")
    return Recipe(path.stem, description(text), values)


def description(text: str) -> str:
    """What the first line of a recipe says, if it is a comment."""
    first = text.partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def is_run(path: str | Path) -> bool:
    """Whether a name is the folder of a run."""
    return (Path(path) / "config.yaml").is_file()
