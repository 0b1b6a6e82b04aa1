import json

import numpy as np
import pytest
import torch

from milkweed._batches import IGNORED
from milkweed.data import MaskedText
from milkweed.data.tokenizers import train_tokenizer

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "moons"]


def story(words, seed=0):
    random = np.random.RandomState(seed)
    return "".join(f"{WORDS[random.randint(10)]}{' ' if random.rand() < 0.9 else chr(10)}" for _ in range(words))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "story.txt").write_text(story(4000))
    train_tokenizer(story(4000), 80).save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture
def make(folder):
    def make(**options):
        options = {"source": str(folder / "story.txt"), "vocabulary_size": 80, "length": 16, "batch_size": 8, **options}
        return MaskedText(**options)

    return make


def unmasked(split):
    """The text of a split, from what is given and what is asked for."""
    batch = split[list(range(len(split)))]
    return torch.where(batch["targets"] == IGNORED, batch["inputs"], batch["targets"])


def test_windows_are_the_text_and_framed(make):
    data = make()
    text, read = story(4000).split(), 0
    for name, share in (("train", 0.9), ("val", 0.05), ("test", 0.05)):
        windows = unmasked(data.split(name))
        assert windows.shape[1] == 16
        assert (windows[:, 0] == 2).all()
        assert (windows[:, -1] == 3).all()
        words = data.tokenizer.decode(windows[:, 1:-1].flatten()).split()
        # Up to 13 words of the split before filled no window.
        start = next(place for place in range(read, read + 14) if text[place : place + len(words)] == words)
        assert abs(len(words) / len(text) - share) < 0.01
        read = start + len(words)
    assert len(text) - read < 14


def test_the_right_share_is_masked_replaced_and_kept(make):
    split = make(masked=0.3, limit=200).split("train")
    batch = split[list(range(len(split)))]
    chosen = batch["targets"] != IGNORED
    assert (chosen.sum(1) == round(0.3 * 14)).all()
    assert not chosen[:, 0].any()
    assert not chosen[:, -1].any()
    count = int(chosen.sum())
    masked = (batch["inputs"] == 4)[chosen]
    kept = (batch["inputs"] == batch["targets"])[chosen]
    replaced = batch["inputs"][chosen][~masked & ~kept]
    # Five standard deviations of a binomial.
    for found, share in ((masked, 0.8), (kept, 0.1)):
        assert abs(int(found.sum()) - share * count) < 5 * (share * (1 - share) * count) ** 0.5 + count / 80
    assert replaced.min() > 4
    assert len(replaced.unique()) > 30
    assert (batch["inputs"] == 4).sum() == masked.sum()


def test_masks_of_the_training_change_with_the_epoch_and_repeat_with_the_seed(make):
    def batches(seed, epoch):
        loader = make(seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return {int(i): row for index, batch in zip(loader.sampler, loader, strict=True) for i, row in zip(
            index, batch["targets"], strict=True)}  # fmt: skip

    first, again, later, other = batches(0, 0), batches(0, 0), batches(0, 1), batches(1, 0)
    assert all(torch.equal(first[i], again[i]) for i in first)
    for changed in (later, other):
        shared = first.keys() & changed.keys()
        assert np.mean([torch.equal(first[i], changed[i]) for i in shared]) < 0.05


def test_masks_do_not_depend_on_the_number_of_processes(make):
    split = make().split("train")
    whole, odd = split[[0, 1, 2, 3]], split[[1, 3]]
    for key in ("inputs", "targets"):
        assert torch.equal(whole[key][1::2], odd[key])


def test_masks_of_the_validation_depend_on_nothing(make):
    for name in ("val", "test"):
        one, other = (make(seed=seed).split(name) for seed in (0, 1))
        again = make(seed=2, batch_size=3).val_dataloader() if name == "val" else None
        rows = list(range(len(one)))
        for key in ("inputs", "targets"):
            assert torch.equal(one[rows][key], other[rows][key])
            if again:
                assert torch.equal(torch.cat([batch[key] for batch in again]), one[rows][key])


def test_tables_with_splits_of_their_own(make, tmp_path, folder):
    for name, seed in (("train", 1), ("validation", 2), ("test", 3)):
        rows = [{"text": line} for line in story(300, seed).split("\n")]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    def words(data, name):
        return data.tokenizer.decode(unmasked(data.split(name))[:, 1:-1].flatten()).split()

    data = make(source=str(tmp_path), tokenizer=str(folder / "tokenizer"))
    for name, seed in (("train", 1), ("val", 2), ("test", 3)):
        assert words(data, name) == story(300, seed).split()[: len(words(data, name))]
    (tmp_path / "test.jsonl").unlink()
    data = make(source=str(tmp_path), tokenizer=str(folder / "tokenizer"), length=8)
    assert words(data, "val") == story(300, 2).split()[: len(words(data, "val"))]
    train, test, text = words(data, "train"), words(data, "test"), story(300, 1).split()
    assert train == text[: len(train)]
    assert test == text[len(text) - 15 :][: len(test)]


def test_sizes_are_known_without_reading(make):
    data = make(source="nowhere", tokenizer="nowhere", vocabulary_size=30528)
    assert data.d_input == data.d_output == 30528
    assert data.tokens


def test_the_tokenizer_is_written_into_the_run(make, tmp_path, folder):
    data = make()
    data.prepare_data()

    class Trainer:
        default_root_dir = tmp_path

    data.trainer = Trainer()
    data.prepare_data()
    other = make(tokenizer=str(tmp_path))
    assert other.tokenizer.get_vocab() == data.tokenizer.get_vocab()
    assert torch.equal(unmasked(other.split("test")), unmasked(data.split("test")))


def test_bad_options_are_refused(make, tmp_path, folder):
    with pytest.raises(ValueError, match=r"masked=0\.0 must be above 0 and at most 1"):
        make(masked=0.0)
    with pytest.raises(ValueError, match="length=3 must be at least 4"):
        make(length=3)
    with pytest.raises(ValueError, match="vocabulary_size=0 must be at least 1"):
        make(vocabulary_size=0)
    with pytest.raises(
        ValueError, match=r"vocabulary_size=30 is too small: data.tokenizer=.* use data.vocabulary_size="
    ):
        make(tokenizer=str(folder / "tokenizer"), vocabulary_size=30).setup()
    maskless = train_tokenizer(story(100), 80)
    maskless.mask_token = None
    maskless.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no mask token; use one of a BERT, or null to train one"):
        make(tokenizer=str(tmp_path)).setup()


def test_bad_texts_are_refused(make, tmp_path):
    (tmp_path / "short.txt").write_text(story(100))
    with pytest.raises(
        ValueError, match=r"short.txt is too short: its val split has \d tokens.*data.length=\d+ or less"
    ):
        make(source=str(tmp_path / "short.txt")).setup()
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        make(source=str(tmp_path / "binary.txt")).setup()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "test.jsonl").write_text('{"text": "a"}')
    with pytest.raises(ValueError, match="have the splits test; expected one that is named train"):
        make(source=str(tmp_path / "bare")).setup()
    (tmp_path / "endless.txt").write_text("x" * 1000)
    with pytest.raises(ValueError, match="too short: its train split has 1 tokens"):
        make(source=str(tmp_path / "endless.txt")).setup()


def test_texts_without_known_words_are_refused(make, folder, tmp_path):
    (tmp_path / "foreign.txt").write_text("猫坐在垫子上看着月亮\n" * 400)
    with pytest.raises(ValueError, match=r"only words that data.tokenizer=.* does not know; use a tokenizer for this"):
        make(source=str(tmp_path / "foreign.txt"), tokenizer=str(folder / "tokenizer")).setup()


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_empty_texts_ask_for_more_text_only(make, folder, tmp_path, content):
    (tmp_path / "empty.txt").write_bytes(content)
    with pytest.raises(ValueError, match="has 0 tokens, fewer than a window of length=16; use a longer text"):
        make(source=str(tmp_path / "empty.txt"), tokenizer=str(folder / "tokenizer")).setup()


def test_a_length_within_the_error_works(make, tmp_path):
    (tmp_path / "short.txt").write_text(story(100))
    with pytest.raises(ValueError, match="is too short") as error:
        make(source=str(tmp_path / "short.txt")).setup()
    length = int(str(error.value).partition("data.length=")[2].split()[0])
    assert len(make(source=str(tmp_path / "short.txt"), length=length).split("val")) == 1
