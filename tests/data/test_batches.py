import pytest
import torch

from milkweed.data.batches import ArrayDataset, EvaluationBatches, TrainingBatches


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        batches = TrainingBatches(20, 4, seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)
    assert order(1, 0) != order(0, 1)


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_global_batches_of_one(world_size):
    whole = list(TrainingBatches(22, 8, seed=5))
    parts = [list(TrainingBatches(22, 8, 5, rank, world_size)) for rank in range(world_size)]
    assert len(whole) == 2
    for step, batch in enumerate(whole):
        for rank in range(world_size):
            assert parts[rank][step] == batch[rank::world_size]


def test_epoch_can_start_in_its_middle_once():
    batches = TrainingBatches(40, 4, seed=0)
    full = list(batches)
    batches.resume_at(7)
    assert list(batches) == full[7:]
    assert list(batches) == full


@pytest.mark.parametrize(
    ("size", "batch_size", "world_size"), [(10, 4, 1), (10, 4, 3), (7, 6, 2), (9, 3, 3), (3, 3, 3)]
)
def test_evaluation_sees_every_sample_once_in_equally_many_batches(size, batch_size, world_size):
    parts = [list(EvaluationBatches(size, batch_size, rank, world_size)) for rank in range(world_size)]
    seen = sorted(index for part in parts for batch in part for index in batch)
    assert seen == list(range(size))
    assert {len(part) for part in parts} == {-(-size // batch_size)}
    assert all(batch for part in parts for batch in part)


def test_dataset_fetches_a_batch_by_its_indices():
    dataset = ArrayDataset(torch.arange(12.0).view(3, 4, 1), torch.tensor([0, 1, 2]))
    batch = dataset[[2, 0]]
    assert batch["inputs"].shape == (2, 4, 1)
    assert batch["targets"].tolist() == [2, 0]
    assert batch["lengths"].tolist() == [4, 4]
    assert batch["lengths"].dtype == torch.int64
