"""Files are written without following links, and what files hold is data: names, JSON, headers, archives."""

import json
import os
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from milkweed import _json, _tensor_files
from milkweed._files import UnsafeFileError, atomic_write, check_unpacked_size, inside, read_json_file


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../x",
        "a/../../x",
        "a/..",
        "/etc/passwd",
        "C:/x",
        "c:x",
        "a\\..\\x",
        "\\\\host\\x",
        "",
        "a\0b",
        None,
        3,
        ["a"],
    ],
)
def test_names_that_leave_their_folder(tmp_path, name):
    with pytest.raises(UnsafeFileError, match="which a file of"):
        inside(tmp_path, name)


def test_links_that_leave_their_folder(tmp_path):
    (tmp_path / "home/deep").mkdir(parents=True)
    (tmp_path / "home/real").write_text("x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("x")
    (tmp_path / "home/folder").symlink_to(tmp_path / "outside")
    (tmp_path / "home/file").symlink_to(tmp_path / "outside/secret")
    (tmp_path / "home/near").symlink_to("real")
    for name in ("file", "folder", "folder/secret", "folder/new"):
        with pytest.raises(UnsafeFileError, match="is a link that leaves that folder"):
            inside(tmp_path / "home", name)
    assert [inside(tmp_path / "home", name).name for name in ("near", "deep", "new", "deep/new.json", "..a")]


def test_links_as_the_hub_places_them(tmp_path):
    home = tmp_path / "models--a--b/snapshots/abc"
    (home / "1_Pooling").mkdir(parents=True)
    (tmp_path / "models--a--b/blobs").mkdir()
    (tmp_path / "models--a--b/blobs/123").write_text("x")
    (tmp_path / "models--a--b/refs").write_text("x")
    (home / "config.json").symlink_to("../../blobs/123")
    (home / "1_Pooling/config.json").symlink_to("../../../blobs/123")
    (home / "other").symlink_to("../../refs")
    assert inside(home, "config.json").read_text() == "x"
    assert inside(home, "1_Pooling/config.json").read_text() == "x"
    with pytest.raises(UnsafeFileError, match="leaves"):
        inside(home, "other")


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / "target").write_text("mine")
    for aim in ("target", "nowhere"):
        (tmp_path / "link").symlink_to(aim)
        with atomic_write(tmp_path / "link") as file:
            assert not file.is_symlink()
            file.write_text("new")
        assert not (tmp_path / "link").is_symlink()
        assert (tmp_path / "link").read_text() == "new"
        (tmp_path / "link").unlink()
    assert (tmp_path / "target").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["target"]


def test_json_that_readers_would_read_differently():
    assert _json.read('{"a": [1, {"b": 2}]}') == {"a": [1, {"b": 2}]}
    for text in ('{"a": 1, "a": 1}', '[{"b": {"a": 1, "c": 2, "a": 3}}]'):
        with pytest.raises(ValueError, match="the key 'a' is there twice"):
            _json.read(text)
    with pytest.raises(ValueError, match="nested too deeply"):
        _json.read("[" * 200_000 + "]" * 200_000)


def test_json_files_are_bounded(tmp_path):
    file = tmp_path / "x.json"
    file.write_text("[" + " " * 100 + "]")
    assert read_json_file(file, 200) == []
    with pytest.raises(ValueError, match=r"x\.json has more than 50 bytes"):
        read_json_file(file, 50)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"x\.json is not JSON"):
        read_json_file(file)


def test_headers_are_bounded_and_have_every_name_once(tmp_path, monkeypatch):
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2)}, file, {"k": "v"})
    assert _tensor_files.read_safetensors_header(file)["a"]["shape"] == [2]
    monkeypatch.setattr(_tensor_files, "LARGEST_HEADER", 16)
    with pytest.raises(ValueError, match=r"its header has .* bytes; at most 16 are read"):
        _tensor_files.read_safetensors_header(file)
    monkeypatch.undo()
    entry = json.dumps({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})
    text = f'{{"a": {entry}, "a": {entry}}}'.encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(ValueError, match="the key 'a' is there twice"):
        _tensor_files.read_safetensors_header(file)
    file.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(ValueError, match="truncated"):
        _tensor_files.read_safetensors_header(file)


def test_archives_that_unpack_to_more(tmp_path):
    file = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(10_000)}, file)
    check_unpacked_size(file)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data/0", bytes(10**6))
    with pytest.raises(ValueError, match=r"unpacks to 1,000,000; torch\.save does not compress"):
        check_unpacked_size(file)
