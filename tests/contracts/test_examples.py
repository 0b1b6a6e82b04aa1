"""Every public callable of the library shows itself in use; `--doctest-modules` runs what it shows."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PACKAGES = [
    "milkweed",
    "milkweed.ops",
    "milkweed.structures",
    "milkweed.ssm",
    "milkweed.nn",
    "milkweed.nn.filters",
    "milkweed.models",
    "milkweed.convert",
]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_callable_has_an_example(package):
    module = importlib.import_module(package)
    public = {name: getattr(module, name) for name in module.__all__}
    # `__doc__` of a class without one would be its parent's.
    documents = {
        name: (vars(value).get("__doc__") if isinstance(value, type) else value.__doc__) or ""
        for name, value in public.items()
        if callable(value)
    }
    assert [name for name, text in documents.items() if not doctest.DocTestParser().get_examples(text)] == []


def test_every_file_with_an_example_is_searched(pytestconfig):
    assert "--doctest-modules" in pytestconfig.getini("addopts")
    searched = [ROOT / path for path in pytestconfig.getini("testpaths")]
    shown = [path for path in (ROOT / "src").rglob("*.py") if ">>> " in path.read_text()]
    assert len(shown) > 80
    assert [str(path) for path in shown if not any(path.is_relative_to(folder) for folder in searched)] == []
