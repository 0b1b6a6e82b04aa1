import pytest
import torch

from milkweed.data import Text
from milkweed.data.text import decode, encode

POEM = "Über allen Gipfeln\nIst Ruh,\n" * 20


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_bytes(POEM.encode())
    return path


def test_windows_are_the_text_and_targets_one_further(file):
    data = Text(str(file), length=8)
    train = data.split("train")
    assert train.inputs.dtype == train.targets.dtype == torch.int64
    part = POEM[: len(POEM) * 90 // 100]
    assert train.inputs.shape == ((len(part) - 1) // 8, 8)
    assert decode(train.inputs.flatten(), data.vocabulary) == part[: train.inputs.numel()]
    assert decode(train.targets.flatten(), data.vocabulary) == part[1 : train.inputs.numel() + 1]
    assert torch.equal(train.lengths, torch.full((len(train),), 8))


def test_parts_follow_each_other_and_do_not_depend_on_the_seed(file):
    parts = [Text(str(file), length=8, seed=seed) for seed in (0, 1)]
    for name, start in (("train", 0), ("val", len(POEM) * 90 // 100), ("test", len(POEM) * 95 // 100)):
        one, other = (data.split(name) for data in parts)
        assert torch.equal(one.inputs, other.inputs)
        assert decode(one.inputs[0], parts[0].vocabulary) == POEM[start : start + 8]


def test_vocabulary_is_of_the_text(file):
    data = Text(str(file), length=8)
    assert data.vocabulary == "".join(sorted(set(POEM)))
    assert data.d_input == data.d_output == len(set(POEM))
    assert decode(encode(POEM, data.vocabulary), data.vocabulary) == POEM
    with pytest.raises(ValueError, match="holds 'z', which is none of the"):
        encode("z", data.vocabulary)


def test_line_ends_are_kept(tmp_path):
    path = tmp_path / "dos.txt"
    path.write_bytes(b"a\r\n" * 100)
    assert Text(str(path), length=2).vocabulary == "\n\ra"


def test_bad_files_are_refused(file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"name a text file with --data.file FILE"):
        Text(str(tmp_path / "nowhere.txt")).setup()
    with pytest.raises(ValueError, match=r"the val part has 28 characters, .* use --data.length 27 or less"):
        Text(str(file), length=50).setup()
    Text(str(file), length=27).setup()
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no UTF-8 text"):
        Text(str(file)).setup()
    with pytest.raises(ValueError, match="length=0 must be at least 1"):
        Text(str(file), length=0)
