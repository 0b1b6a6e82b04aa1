import os
import zipfile

import pytest
import torch

from milkweed.train.checkpoint_io import AtomicCheckpointIO, CheckpointError, read_checkpoint
from milkweed.train.checkpoints import link

CONTENT = {"state_dict": {"w": torch.arange(1000.0)}, "global_step": 3, "epoch": 1}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "step-000000003.ckpt"
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    return path


def test_round_trip_leaves_nothing_else(path):
    assert torch.equal(read_checkpoint(path)["state_dict"]["w"], CONTENT["state_dict"]["w"])
    assert list(path.parent.iterdir()) == [path]


def test_failed_write_keeps_the_old_file(path):
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"bad": lambda: None}, path)
    assert read_checkpoint(path)["global_step"] == 3
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("keep", [0, 10, 2000, -1])
def test_truncation_is_noticed(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        read_checkpoint(path)


def test_flipped_tensor_byte_is_noticed(path):
    content = bytearray(path.read_bytes())
    content[content.index(torch.tensor(500.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="corrupt"):
        read_checkpoint(path)


def test_a_checkpoint_cut_off_or_changed_anywhere_is_named(tmp_path):
    path = tmp_path / "step-000000003.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.arange(3.0)}, "global_step": 3, "epoch": 1}, path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"step-000000003\.ckpt"):
            read_checkpoint(path)
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            assert torch.equal(read_checkpoint(path)["state_dict"]["w"], torch.arange(3.0))
        except CheckpointError as error:
            text = str(error)
            assert "step-000000003.ckpt" in text


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path):
    path = tmp_path / "step-000000003.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(CheckpointError, match="unpacks to"):
        read_checkpoint(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "step-000000003.ckpt")
    with pytest.raises(CheckpointError, match="is not a plain file"):
        read_checkpoint(tmp_path / "step-000000003.ckpt")


def test_steps_are_numbers(tmp_path):
    torch.save({"state_dict": {}, "global_step": "3", "epoch": 0}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="its step and epoch are not numbers"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "made").exists()


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match="is a folder without checkpoints; name a file in runs/NAME/checkpoints"):
        read_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is not a checkpoint of a training; name a \.ckpt file"
    ):
        read_checkpoint(tmp_path / "model.safetensors")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="not a training checkpoint: it lacks epoch, global_step, state_dict"):
        read_checkpoint(tmp_path / "other.ckpt")


@pytest.mark.parametrize("inside", [True, False])
def test_a_folder_is_told_from_its_checkpoints(tmp_path, inside):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for step in (3, 12):
        AtomicCheckpointIO().save_checkpoint(CONTENT, folder / f"step-{step:09d}.ckpt")
    with pytest.raises(CheckpointError, match="is a folder; name a file in it, such as its newest, ") as error:
        read_checkpoint(folder if inside else folder.parent)
    named = str(error.value).partition("newest, ")[2].split(",")[0]
    assert named == str(folder / "step-000000012.ckpt")
    assert read_checkpoint(named)["global_step"] == 3


def test_link_replaces(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("old")
    new.write_text("new")
    link(new, old)
    assert old.read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "old"]
