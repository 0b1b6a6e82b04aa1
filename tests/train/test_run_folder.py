import pytest
import torch

from milkweed.train.checkpoint_io import CheckpointError
from milkweed.train.run_folder import RunFolder, check_writable


def test_names_are_numbered_never_reused(tmp_path):
    names = [RunFolder.create(tmp_path, "digits", numbered=True).name for _ in range(3)]
    assert names == ["digits", "digits-2", "digits-3"]
    with pytest.raises(FileExistsError, match=r"digits exists already .* --resume auto"):
        RunFolder.create(tmp_path, "digits", numbered=False)


def test_newest_counts_numbers_only(tmp_path):
    assert RunFolder.newest(tmp_path, "digits") is None
    for name in ("digits", "digits-2", "digits-10", "digits-mixer", "digits-mixer-40"):
        (tmp_path / name).mkdir()
    assert RunFolder.newest(tmp_path, "digits").name == "digits-10"


def test_unwritable_folders_are_refused_and_nothing_is_left(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file; choose another --out"):
        check_writable(tmp_path / "file" / "run")


def test_readonly_folder_is_refused(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    # Permission bits do not stop root, under whom containers run.
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(PermissionError, match=r"cannot be written: .*: Permission denied; choose another --out"):
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
    with pytest.raises(FileNotFoundError, match="is no run"):
        RunFolder(tmp_path).read_config()
