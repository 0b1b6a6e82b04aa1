import json

import pytest
import torch

from milkweed.cli import main
from milkweed.data import Text
from milkweed.data.characters import decode, encode
from milkweed.data.tokenizers import train_tokenizer

POEM = "Über allen Gipfeln\nIst Ruh,\n" * 20


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_bytes(POEM.encode())
    return path


def whole(split):
    return split[list(range(len(split)))]


def test_windows_are_the_text_and_targets_one_further(file):
    data = Text(str(file), length=8)
    train = whole(data.split("train"))
    assert train["inputs"].dtype == train["targets"].dtype == torch.int64
    part = POEM[: len(POEM) * 90 // 100]
    assert train["inputs"].shape == ((len(part) - 1) // 8, 8)
    assert decode(train["inputs"].flatten(), data.vocabulary) == part[: train["inputs"].numel()]
    assert decode(train["targets"].flatten(), data.vocabulary) == part[1 : train["inputs"].numel() + 1]
    assert torch.equal(train["lengths"], torch.full((len(train["inputs"]),), 8))


def test_a_limit_keeps_the_first_windows(file):
    few, all_of_them = (Text(str(file), length=8, limit=limit).split("train") for limit in (3, None))
    assert len(few) == 3
    assert torch.equal(whole(few)["inputs"], whole(all_of_them)["inputs"][:3])


def test_the_characters_of_every_plane_are_told_apart(tmp_path):
    text = "a\U0001f600\u20ac\x00 \u2028\n" * 40
    (tmp_path / "strange.txt").write_bytes(text.encode())
    data = Text(str(tmp_path / "strange.txt"), length=5)
    assert data.vocabulary == "".join(sorted(set(text)))
    found = decode(whole(data.split("train"))["inputs"].flatten(), data.vocabulary)
    assert found == text[: len(found)]


def test_a_file_that_changes_is_read_anew(tmp_path):
    path = tmp_path / "story.txt"
    for text in ("ab" * 100, "ba" * 100):
        path.write_text(text)
        data = Text(str(path), length=4)
        assert decode(data.split("train")[[0]]["inputs"][0], data.vocabulary) == text[:4]


def test_parts_follow_each_other_and_do_not_depend_on_the_seed(file):
    parts = [Text(str(file), length=8, seed=seed) for seed in (0, 1)]
    for name, start in (("train", 0), ("val", len(POEM) * 90 // 100), ("test", len(POEM) * 95 // 100)):
        one, other = (data.split(name) for data in parts)
        assert torch.equal(whole(one)["inputs"], whole(other)["inputs"])
        assert decode(one[[0]]["inputs"][0], parts[0].vocabulary) == POEM[start : start + 8]


def test_vocabulary_is_of_the_text(file):
    data = Text(str(file), length=8)
    assert data.vocabulary == "".join(sorted(set(POEM)))
    assert data.d_input == data.d_output == len(set(POEM))
    assert decode(encode(POEM, data.vocabulary), data.vocabulary) == POEM
    with pytest.raises(ValueError, match="holds 'z', which is not among the"):
        encode("z", data.vocabulary)


def test_line_ends_are_kept(tmp_path):
    path = tmp_path / "dos.txt"
    path.write_bytes(b"a\r\n" * 100)
    assert Text(str(path), length=2).vocabulary == "\n\ra"


def test_bad_files_are_refused(file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"name a text file as data.file"):
        Text(str(tmp_path / "nowhere.txt")).setup()
    with pytest.raises(ValueError, match=r"the val part has 28 characters, .* use data.length=27 or less"):
        Text(str(file), length=50).setup()
    Text(str(file), length=27).setup()
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        Text(str(file)).setup()
    with pytest.raises(ValueError, match="length=0 must be at least 1"):
        Text(str(file), length=0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(POEM, 60).save_pretrained(folder)
    return str(folder)


def test_tokens_of_a_text_file(file, tokenizer):
    file.write_text(POEM * 5)
    data = Text(str(file), tokenizer, length=8)
    assert data.vocabulary is None
    assert data.d_input == data.d_output == len(data.tokenizer)
    expected = data.tokenizer(POEM * 5, add_special_tokens=False)["input_ids"]
    train = whole(data.split("train"))
    end = train["inputs"].numel()
    assert train["inputs"].flatten().tolist() == expected[:end]
    assert train["targets"].flatten().tolist() == expected[1 : end + 1]
    assert end // 8 == (len(expected) * 90 // 100 - 1) // 8
    texts = data.tokenizer.batch_decode(train["targets"], clean_up_tokenization_spaces=False)
    assert train["characters"].tolist() == [len(text) for text in texts]
    with pytest.raises(ValueError, match=r"the val part has \d+ tokens, fewer than a window") as error:
        Text(str(file), tokenizer, length=5000).setup()
    length = int(str(error.value).partition("data.length=")[2].split()[0])
    Text(str(file), tokenizer, length=length).setup()
    with pytest.raises(ValueError, match="fewer than a window"):
        Text(str(file), tokenizer, length=length + 1).setup()


def test_texts_without_known_words_are_refused(tmp_path, tokenizer):
    foreign = "猫坐在垫子上看着月亮\n" * 100
    (tmp_path / "foreign.txt").write_text(foreign)
    with pytest.raises(ValueError, match=r"the train part has only words that data.tokenizer=.* does not know"):
        Text(str(tmp_path / "foreign.txt"), tokenizer, length=8).setup()
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": foreign}) + "\n")
    (tmp_path / "validation.jsonl").write_text(json.dumps({"text": POEM}) + "\n")
    with pytest.raises(ValueError, match="the train part has only words that"):
        Text(str(tmp_path), tokenizer, length=8).setup()
    (tmp_path / "mixed.txt").write_text(foreign * 100 + POEM * 1000)  # known words far behind the beginning
    assert len(Text(str(tmp_path / "mixed.txt"), tokenizer, length=8).split("train")) > 1000


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_empty_files_are_called_so(tmp_path, content, capsys):
    (tmp_path / "empty.txt").write_bytes(content)
    for recipe in ("m2-gpt", "shakespeare"):
        arguments = ["train", recipe, "--out", str(tmp_path / "runs"), "--data.file", str(tmp_path / "empty.txt")]
        assert main(arguments) == 2
        assert "empty.txt is empty; name a file with text in it" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_a_byte_order_mark_is_no_character(tmp_path):
    (tmp_path / "poem.txt").write_bytes(b"\xef\xbb\xbf" + POEM.encode())
    assert Text(str(tmp_path / "poem.txt"), length=8).vocabulary == "".join(sorted(set(POEM)))


def test_rows_of_tables_end_with_a_token(tmp_path, tokenizer):
    rows = [{"words": "Ist Ruh"}, {"words": "Gipfeln"}] * 40
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Text(str(tmp_path), tokenizer, column="words", length=4)
    end = data.tokenizer.sep_token_id
    pair = [
        token
        for row in rows[:2]
        for token in (*data.tokenizer(row["words"], add_special_tokens=False)["input_ids"], end)
    ]
    val = whole(data.split("val"))["inputs"].flatten().tolist()
    assert val == (pair * 40)[: len(val)]
    assert len(data.split("test")) > 0  # cut from the training text
    assert len(data.split("train")) < len(data.split("val"))


def test_a_small_gpt_on_tokens_trains_and_keeps_its_tokenizer(tmp_path, file, tokenizer):
    file.write_text(POEM * 5)
    options = ["--data.file", str(file), "--data.tokenizer", tokenizer, "--data.length", "8", "--data.batch_size", "4"]
    options += ["--model.d_model", "16", "--model.depth", "1", "--trainer.max_epochs", "1", "--task.warmup_steps", "2"]
    assert main(["train", "m2-gpt", "--out", str(tmp_path), *options]) == 0
    assert Text(str(file), str(tmp_path / "m2-gpt"), length=8).d_input == Text(str(file), tokenizer, length=8).d_input
    assert main(["evaluate", str(tmp_path / "m2-gpt")]) == 0
