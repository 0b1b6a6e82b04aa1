import json
import os

import pytest
import torch

from milkweed.train.callbacks import write_rows
from milkweed.train.checkpoint_io import CheckpointError
from milkweed.train.run_folder import RunFolder, check_writable, write_json


def test_names_are_numbered_never_reused(tmp_path):
    names = [RunFolder.create(tmp_path, "digits", numbered=True).name for _ in range(3)]
    assert names == ["digits", "digits-2", "digits-3"]
    with pytest.raises(FileExistsError, match=r"digits exists already .* or resume it"):
        RunFolder.create(tmp_path, "digits", numbered=False)


def test_newest_counts_numbers_only(tmp_path):
    assert RunFolder.newest(tmp_path, "digits") is None
    for name in ("digits", "digits-2", "digits-10", "digits-mixer", "digits-mixer-40"):
        (tmp_path / name).mkdir()
    assert RunFolder.newest(tmp_path, "digits").name == "digits-10"


@pytest.mark.parametrize(
    "name", ["a[1]", "*", "?", "[!x]", "[", "**", "a b", "-x", "[red]x[bold]", "ü", "a$b$", "%s", "{}"]
)
def test_names_stand_for_themselves(tmp_path, name):
    for other in ("a1", "a1-7", "b-9", "xx-3", "x-4"):
        (tmp_path / other).mkdir()
    assert RunFolder.newest(tmp_path, name) is None
    assert RunFolder.newest(tmp_path / "missing", name) is None
    for number in range(1, 4):
        made = RunFolder.create(tmp_path, name, numbered=True)
        assert made.name == (name if number == 1 else f"{name}-{number}")
        assert RunFolder.newest(tmp_path, name).name == made.name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/a", "a/", "a\\b", " ", "...", "a\0b", "a\nb"])
def test_names_lead_nowhere(tmp_path, name):
    with pytest.raises(ValueError, match="must be the name of one folder, without slashes"):
        RunFolder.create(tmp_path / "out", name, numbered=True)
    with pytest.raises(ValueError, match="must be the name of one folder, without slashes"):
        RunFolder.newest(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_that_are_no_plain_files_are_passed_over(tmp_path):
    folder, warnings = RunFolder(tmp_path / "run"), []
    folder.checkpoints.mkdir(parents=True)
    outside = tmp_path / "step-000000009.ckpt"
    torch.save({"state_dict": {}, "global_step": 9, "epoch": 0}, outside)
    (folder.checkpoints / "step-000000009.ckpt").symlink_to(outside)
    (folder.checkpoints / "step-000000008.ckpt").mkdir()
    os.mkfifo(folder.checkpoints / "step-000000007.ckpt")
    (folder.checkpoints / "step-000000006.ckpt").symlink_to(tmp_path / "nothing")
    (folder.checkpoints / "step-x.ckpt").write_bytes(b"")
    good = {"state_dict": {}, "global_step": 10**9, "epoch": 0}
    with pytest.raises(CheckpointError, match="none of the 4 checkpoints"):
        folder.newest_checkpoint(warnings.append)
    assert [
        text.endswith("is a link or not a file; no training makes such a thing; delete it") for text in warnings
    ] == [True] * 4
    for step in (5, 10**9):
        torch.save(good | {"global_step": step}, folder.checkpoints / f"step-{step:09d}.ckpt")
    assert [path.name for path in folder.checkpoint_files()] == ["step-1000000000.ckpt", "step-000000005.ckpt"]
    assert folder.newest_checkpoint(warnings.append).name == "step-1000000000.ckpt"


def test_a_run_keeps_its_files_in_its_own_folder(tmp_path):
    (tmp_path / "victim").mkdir()
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.check_own()
    folder.checkpoints.symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=r"checkpoints is a link to .*victim: .*or make .*run itself the link"):
        folder.check_own()
    (tmp_path / "linked").symlink_to(tmp_path / "victim")
    (tmp_path / "victim" / "checkpoints").mkdir()
    RunFolder(tmp_path / "linked").check_own()


@pytest.mark.parametrize("name", ["metrics.csv", "results.json", "environment.json", "config.yaml"])
def test_a_link_at_the_place_of_a_file_is_replaced_not_followed(tmp_path, name):
    victim = tmp_path / "thesis.tex"
    victim.write_text("years of work")
    (tmp_path / "run").mkdir()
    folder = RunFolder(tmp_path / "run")
    (folder.path / name).symlink_to(victim)
    {
        "metrics.csv": lambda: write_rows(folder.metrics, [{"epoch": 0, "seconds": 1.0}]),
        "results.json": lambda: write_json(folder.results, {}),
        "environment.json": lambda: folder.write_environment({}),
        "config.yaml": lambda: folder.write_config({}),
    }[name]()
    assert victim.read_text() == "years of work"
    assert (folder.path / name).is_file()
    assert not (folder.path / name).is_symlink()


def test_a_damaged_description_is_named_and_made_do_without(tmp_path):
    folder, text = RunFolder(tmp_path), None
    content = {"recipe": "digits", "resumed": [{"a": 1.5}]}
    folder.write_environment(content)
    text = folder.environment.read_bytes()
    for length in range(len(text) - 1):
        warnings = []
        folder.environment.write_bytes(text[:length])
        assert folder.read_environment(warnings.append) == {}
        assert str(folder.environment) in warnings[0]
    folder.environment.write_bytes(b"\xff")
    assert folder.read_environment() == {}


def test_json_has_null_for_what_is_no_number(tmp_path):
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [float("inf"), (1.5, -float("inf"))], "c": True, "d": "ü"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [None, [1.5, None]], "c": True, "d": "ü"}


def test_unwritable_folders_are_refused_and_nothing_is_left(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file; choose another folder"):
        check_writable(tmp_path / "file" / "run")


def test_readonly_folder_is_refused(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    # Permission bits do not stop root, under whom containers run.
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(PermissionError, match=r"cannot be written: .*: Permission denied; choose another folder"):
        check_writable(tmp_path)


def test_newest_checkpoint_skips_damaged_ones(tmp_path):
    folder = RunFolder(tmp_path)
    warnings = []
    assert folder.newest_checkpoint(warnings.append) is None
    folder.checkpoints.mkdir()
    good = {"state_dict": {}, "global_step": 1, "epoch": 0}
    torch.save(good, folder.checkpoints / "step-000000001.ckpt")
    damaged = folder.checkpoints / "step-000000002.ckpt"
    damaged.write_bytes(b"PK")
    assert folder.newest_checkpoint(warnings.append).name == "step-000000001.ckpt"
    assert [f"{damaged} is corrupt" in text for text in warnings] == [True]
    (folder.checkpoints / "step-000000001.ckpt").unlink()
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        folder.newest_checkpoint(warnings.append)


def test_foreign_folder_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a run"):
        RunFolder(tmp_path).read_config()
