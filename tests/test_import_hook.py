"""What is done once a module of another library has been imported."""

import sys
from pathlib import Path

import pytest

from milkweed._import_hook import when_imported


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that can be imported, and is forgotten after the test."""
    name = f"hooked_{tmp_path.name.replace('-', '_')}"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / f"{name}.py").write_text("value = 1\n")
    yield name
    sys.modules.pop(name, None)


def test_acts_after_the_import_and_only_once(module: str) -> None:
    seen = []
    when_imported(module, lambda: seen.append(sys.modules[module].value))
    assert seen == []
    __import__(module)
    assert seen == [1]
    sys.modules.pop(module)
    __import__(module)
    assert seen == [1]


def test_acts_at_once_where_the_module_is_there(module: str) -> None:
    __import__(module)
    seen = []
    when_imported(module, lambda: seen.append(True))
    assert seen == [True]


def test_two_can_wait_for_one_module(module: str) -> None:
    seen = []
    when_imported(module, lambda: seen.append("first"))
    when_imported(module, lambda: seen.append("second"))
    __import__(module)
    assert sorted(seen) == ["first", "second"]


def test_a_failed_import_is_tried_again(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text("raise ImportError('broken')\n")
    seen = []
    when_imported(module, lambda: seen.append(True))
    with pytest.raises(ImportError, match="broken"):
        __import__(module)
    (tmp_path / f"{module}.py").write_text("value = 'mended'\n")
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        __import__(module)
    finally:
        sys.dont_write_bytecode = before
    assert seen == [True]


def test_finding_without_importing_does_not_act(module: str) -> None:
    import importlib.util

    seen = []
    when_imported(module, lambda: seen.append(True))
    assert importlib.util.find_spec(module) is not None
    assert seen == []
    __import__(module)
    assert seen == [True]
