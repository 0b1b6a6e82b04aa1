"""Every public callable of the library shows itself in use; `--doctest-modules` runs what it shows."""

import doctest
import importlib

import pytest

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


@pytest.mark.parametrize("package", PACKAGES[1:])
def test_their_folders_are_searched_for_examples(package, pytestconfig):
    folder = "src/" + package.replace(".", "/")
    assert "--doctest-modules" in pytestconfig.getini("addopts")
    assert any(folder == path or folder.startswith(path + "/") for path in pytestconfig.getini("testpaths"))
