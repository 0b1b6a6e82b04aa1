"""Folders of others that name files elsewhere: `milkweed convert` copies nothing from there, and writes nothing."""

import json

import pytest

pytest.importorskip("rich")

from milkweed.cli.convert.destination import copy_side_files


@pytest.fixture
def folders(tmp_path):
    source, out = tmp_path / "download/model", tmp_path / "home/out"
    source.mkdir(parents=True)
    out.mkdir(parents=True)
    for place in (tmp_path / "download", tmp_path / "home", tmp_path):
        (place / "Makefile").write_text(str(place))
    return source, out


@pytest.mark.parametrize("path", ["..", ".", "../..", "/", "a/..", "..\\..", "\0", 3, None, ["x"], {}])
def test_modules_elsewhere(folders, tmp_path, path):
    source, out = folders
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling/config.json").write_text("{}")
    modules = [{"path": path}, {"path": "1_Pooling"}, {"path": ""}]
    (source / "modules.json").write_text(json.dumps(modules))
    assert copy_side_files(source, out) == []
    assert (tmp_path / "home/Makefile").read_text() == str(tmp_path / "home")
    assert sorted(str(each.relative_to(out)) for each in out.rglob("*") if each.is_file()) == [
        "1_Pooling/config.json",
        "modules.json",
    ]


def test_damaged_lists_of_modules(folders):
    source, out = folders
    for text in ("[", "[" * 10**5, "{}", "[1]", '[{"path": "a", "path": "b"}]', "3"):
        (source / "modules.json").write_text(text)
        copy_side_files(source, out)


def test_links_to_files_elsewhere(folders, tmp_path):
    source, out = folders
    (source / "vocab.txt").symlink_to(tmp_path / "Makefile")
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling/model.safetensors").symlink_to(tmp_path / "Makefile")
    (source / "2_Dense").symlink_to(tmp_path / "download")
    (source / "README.md").write_text("x")
    (source / "LICENSE").symlink_to("README.md")
    (source / "modules.json").write_text(json.dumps([{"path": "1_Pooling"}, {"path": "2_Dense"}]))
    assert copy_side_files(source, out) == ["vocab.txt", "1_Pooling/model.safetensors"]
    assert sorted(each.name for each in out.rglob("*")) == ["LICENSE", "modules.json"]


def test_links_that_lie_where_files_go(folders, tmp_path):
    source, out = folders
    (source / "vocab.txt").write_text("new")
    (out / "vocab.txt").symlink_to(tmp_path / "Makefile")
    with pytest.raises(ValueError, match="is a link that leaves that folder"):
        copy_side_files(source, out)
    assert (tmp_path / "Makefile").read_text() == str(tmp_path)


def test_links_of_the_hubs_cache(tmp_path):
    source = tmp_path / "models--a--b/snapshots/abc"
    (source / "1_Pooling").mkdir(parents=True)
    (tmp_path / "models--a--b/blobs").mkdir()
    (tmp_path / "models--a--b/blobs/12").write_text("{}")
    (source / "modules.json").write_text(json.dumps([{"path": "1_Pooling"}]))
    (source / "vocab.txt").symlink_to("../../blobs/12")
    (source / "1_Pooling/config.json").symlink_to("../../../blobs/12")
    (tmp_path / "out").mkdir()
    assert copy_side_files(source, tmp_path / "out") == []
    copied = [tmp_path / "out" / name for name in ("vocab.txt", "1_Pooling/config.json")]
    assert all(file.is_file() and not file.is_symlink() for file in copied)
