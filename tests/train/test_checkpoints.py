"""Which checkpoint is the best, whatever the metric is."""

import math
from types import SimpleNamespace

import pytest
import torch

from milkweed.train.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from milkweed.train.checkpoints import BEST, KeepCheckpoints, own_checkpoints

NAN, INF = math.nan, math.inf


def kept(folder, scores, *, larger=True, stop=None):
    """Run epochs with these scores through the callback; after `stop` of them, through a new one that is resumed."""
    judge = KeepCheckpoints(folder, "val_x", larger_is_better=larger)
    for epoch, score in enumerate(scores):
        if epoch == stop:
            state = judge.state_dict()
            judge = KeepCheckpoints(folder, "val_x", larger_is_better=larger)
            judge.load_state_dict(state)
        content = {"state_dict": {}, "global_step": epoch + 1, "epoch": epoch}
        trainer = SimpleNamespace(
            callback_metrics={} if score is None else {"val_x": torch.tensor(score)},
            current_epoch=epoch,
            global_step=epoch + 1,
            is_global_zero=True,
            save_checkpoint=lambda path, content=content: AtomicCheckpointIO().save_checkpoint(content, path),
        )
        judge.on_train_epoch_end(trainer, None)
    assert read_checkpoint(folder / BEST)["epoch"] == judge.best_epoch
    return judge.best_epoch, judge.best_score


@pytest.mark.parametrize("stop", [None, 1, 2])
@pytest.mark.parametrize("larger", [True, False])
@pytest.mark.parametrize(
    ("scores", "best", "score"),
    [
        ([NAN, 1.0, 0.5], 1, 1.0),
        ([NAN, NAN, -3.0, NAN], 2, -3.0),
        ([1.0, NAN, NAN], 0, 1.0),
        ([1.0, INF, -INF, 2.0, NAN], 3, 2.0),
        ([INF, 1.0], 1, 1.0),
        ([-INF, 1.0], 1, 1.0),
        ([NAN, NAN, NAN], 2, None),
        ([None, None, None], 2, None),
        ([NAN, None, 1.0, None], 2, 1.0),
        ([1.0, 1.0], 1, 1.0),
    ],
)
def test_what_is_no_number_never_wins_nor_blocks(tmp_path, scores, larger, best, score, stop):
    turned = scores if larger else [None if each is None else -each for each in scores]
    found = kept(tmp_path, turned, larger=larger, stop=stop)
    assert found == (best, score if larger or score is None else -score)


def test_a_state_with_nan_is_taken_as_none_yet():
    judge = KeepCheckpoints(None, "val_x")
    judge.load_state_dict({"best_score": NAN, "best_epoch": 0, "best_step": 1, "batches_done": 0})
    assert judge.best_score is None


def test_only_its_own_files_are_removed(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    victim = tmp_path / "victim.ckpt"
    victim.write_text("x")
    (folder / "step-000000099.ckpt").symlink_to(victim)
    (folder / "step-000000098.ckpt").mkdir()
    (folder / ".step-x.ckpt").mkdir()
    (folder / "step-000000050.ckpt").write_text("x")
    (folder / ".step-000000050-abc.ckpt").write_text("x")
    (folder / "step-50-mine.ckpt").write_text("x")
    judge = KeepCheckpoints(folder, "val_x")
    judge._roll_back(7)
    assert victim.read_text() == "x"
    assert sorted(path.name for path in folder.iterdir()) == [
        ".step-x.ckpt",
        "step-000000098.ckpt",
        "step-000000099.ckpt",
        "step-50-mine.ckpt",
    ]
    assert own_checkpoints(folder) == []


@pytest.mark.parametrize("damaged", ["best", "source", "link"])
def test_the_best_is_made_anew_from_a_readable_file(tmp_path, damaged):
    for step in (1, 2):
        content = {"state_dict": {}, "global_step": step, "epoch": step - 1}
        AtomicCheckpointIO().save_checkpoint(content, tmp_path / f"step-{step:09d}.ckpt")
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "global_step": 1, "epoch": 0}, tmp_path / BEST)
    if damaged == "link":
        (tmp_path / BEST).unlink()
        (tmp_path / BEST).symlink_to(tmp_path / "step-000000001.ckpt")
    else:
        (tmp_path / (BEST if damaged == "best" else "step-000000001.ckpt")).write_bytes(b"PK")
    judge = KeepCheckpoints(tmp_path, "val_x")
    judge.load_state_dict({"best_score": 1.0, "best_epoch": 0, "best_step": 1, "batches_done": 0})
    judge._roll_back(2)
    assert read_checkpoint(tmp_path / BEST)["global_step"] == 1
    assert not (tmp_path / BEST).is_symlink()
    assert judge.best_score == 1.0
