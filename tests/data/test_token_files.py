import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import transformers
from tokenizers import normalizers

from milkweed.data import MaskedText
from milkweed.data import token_files as module
from milkweed.data.cache import cache_folder, cached, new_folder
from milkweed.data.corpora import Corpus, Shares
from milkweed.data.token_files import token_files, tokenizer_key, trained_tokenizer
from milkweed.data.tokenizers import train_tokenizer


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MILKWEED_CACHE", str(tmp_path / "cache"))


def shares(*documents, names=("train",), last=(), key="key"):
    return Shares(Corpus(lambda: iter([iter([text]) for text in documents]), key), names, last)


def as_lengths(pieces):
    return [np.array([len(word) for word in piece.split()]) for piece in pieces]


def test_tokens_are_those_of_all_pieces():
    found = token_files([shares("a bb ccc", "", "dd")], as_lengths, 100, "lengths")
    assert found["train"].dtype == np.uint16
    assert found["train"].tolist() == [1, 2, 3, 2]


def test_documents_may_end_with_a_token():
    assert token_files([shares("a bb", "", "dd")], as_lengths, 100, "x", end=9)["train"].tolist() == [1, 2, 9, 9, 2, 9]


def test_large_vocabularies_have_wider_numbers():
    found = token_files([shares("a")], lambda pieces: [np.array([70000])[: len(piece)] for piece in pieces], 70001, "x")
    assert found["train"].dtype == np.uint32
    assert found["train"].tolist() == [70000]


def test_splits_have_a_file_each_which_may_be_empty():
    whole = shares("a bb " * 50, names=("train", "val", "test"), last=(10, 10))
    found = token_files([whole, shares("", names=("other",), key="other")], as_lengths, 100, "x")
    assert {name: len(part) for name, part in found.items()} == {"train": 80, "val": 10, "test": 10, "other": 0}


def test_more_pieces_than_are_cut_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "_PIECES", 3)
    words = [f"{'x' * (1 + n % 7)} " for n in range(17)]
    text = Shares(Corpus(lambda: iter([iter(words)]), "key"), ("train",))
    assert token_files([text], as_lengths, 100, "x")["train"].tolist() == [1 + n % 7 for n in range(17)]


def test_what_has_been_cut_is_not_cut_again():
    calls = []

    def encode(pieces):
        calls.append(pieces)
        return as_lengths(pieces)

    for _ in range(2):
        assert token_files([shares("a bb")], encode, 100, "x")["train"].tolist() == [1, 2]
    assert len(calls) == 1
    for changed in (
        lambda: token_files([shares("a bb", key="other")], encode, 100, "x"),
        lambda: token_files([shares("a bb")], encode, 100, "y"),
        lambda: token_files([shares("a bb")], encode, 100, "x", end=1),
        lambda: token_files([shares("a bb")], encode, 2**17, "x"),
        lambda: token_files([shares("a bb", names=("train", "val"), last=(5,))], encode, 100, "x"),
    ):
        before = len(calls)
        changed()
        assert len(calls) == before + 1


def test_an_interruption_leaves_nothing(tmp_path):
    def encode(pieces):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        token_files([shares("a")], encode, 100, "x")
    assert not list((tmp_path / "cache" / "tokens").iterdir())
    assert token_files([shares("a")], as_lengths, 100, "x")["train"].tolist() == [1]


def test_of_two_who_make_a_folder_the_first_wins(tmp_path):
    folder = tmp_path / "made"
    with new_folder(folder) as one:
        (one / "file").write_text("one")
        with new_folder(folder) as other:
            (other / "file").write_text("other")
    assert (folder / "file").read_text() == "other"
    assert os.listdir(tmp_path) == ["made"]
    assert sorted(os.listdir(folder)) == ["file", "milkweed-cache.json"]


DAMAGE = {
    "shorter": lambda file: file.write_bytes(file.read_bytes()[:-2]),
    "empty": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
    "zeros at its end": lambda file: file.write_bytes(file.read_bytes()[:-2] + b"\0\0"),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0\0"),
}


@pytest.mark.parametrize("file", ["train.bin", "milkweed-cache.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_made_anew(damage, file, tmp_path):
    def read():
        return token_files([shares("a bb ccc")], as_lengths, 100, "x")["train"].tolist()

    read()
    (folder,) = (tmp_path / "cache" / "tokens").iterdir()
    DAMAGE[damage](folder / file)
    assert read() == [1, 2, 3]
    assert list((tmp_path / "cache" / "tokens").iterdir()) == [folder]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_tokenizer_is_trained_anew(damage, tmp_path):
    text = shares("the cat sat " * 30)
    first = trained_tokenizer(text, 60).get_vocab()
    DAMAGE[damage](next((tmp_path / "cache" / "tokenizers").glob("*/tokenizer.json")))
    assert trained_tokenizer(text, 60).get_vocab() == first


def test_a_half_made_folder_of_an_earlier_version_is_replaced(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "old").write_text("")
    cached(folder, lambda temporary: (temporary / "file").write_text("x"))
    assert sorted(os.listdir(folder)) == ["file", "milkweed-cache.json"]
    cached(folder, None)


def test_many_writers_at_once_all_read_the_whole(tmp_path, pytestconfig):
    program = (
        "import numpy as np\nfrom milkweed.data.corpora import Corpus, Shares\n"
        "from milkweed.data.token_files import token_files\n"
        "words = ['x' * (n % 50) + ' ' for n in range(20000)]\n"
        "text = Shares(Corpus(lambda: iter([iter(words)]), 'key'), ('train',))\n"
        "found = token_files([text], lambda pieces: [np.array([len(piece)]) for piece in pieces], 100, 'x')['train']\n"
        "assert found.tolist() == [*(1 + n % 50 for n in range(20000)), 0]\n"
    )
    count = 4 if pytestconfig.getoption("all_cases") else 2
    children = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(count)]
    assert [child.wait(120) for child in children] == [0] * count
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 1


def test_a_cache_that_cannot_be_written_says_how_to_move_it(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MILKWEED_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        OSError, match=r"tokens cannot be written \(Not a directory\); name another folder.*MILKWEED_CACHE"
    ):
        token_files([shares("a")], as_lengths, 100, "x")


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("MILKWEED_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("tokens", "a").parent == tmp_path / "milkweed" / "tokens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("tokens", "a").parent == tmp_path / ".cache" / "milkweed" / "tokens"


def test_a_tokenizers_key_is_of_what_it_does():
    text = "the cat sat on the mat\n" * 3
    one, same, other = (train_tokenizer(text, size) for size in (60, 60, 28))
    assert tokenizer_key(one) == tokenizer_key(same) != tokenizer_key(other)
    one(["the cat"], truncation=True, max_length=3, padding="max_length")
    assert tokenizer_key(one) == tokenizer_key(same)


def changed(tokenizer, how, monkeypatch):
    if how == "added token":
        tokenizer.add_tokens(["zzz"])
    elif how == "special token":
        tokenizer.add_special_tokens({"additional_special_tokens": ["<x>"]})
    elif how == "capitals count":
        tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    elif how == "special tokens are cut":
        tokenizer.split_special_tokens = True
    else:
        monkeypatch.setattr(module, "version", lambda name: "0.0.1")


@pytest.mark.parametrize(
    "how", ["added token", "special token", "capitals count", "special tokens are cut", "another version"]
)
def test_a_tokenizers_key_holds_all_that_decides(how, monkeypatch):
    tokenizer = train_tokenizer("the cat sat on the mat\n" * 3, 60)
    before = tokenizer_key(tokenizer)
    changed(tokenizer, how, monkeypatch)
    assert tokenizer_key(tokenizer) != before


class Slow(transformers.PythonBackend):
    """A tokenizer without a fast backend."""

    vocab_files_names = {"rules": "rules.txt"}  # noqa: RUF012 - as transformers has it

    def __init__(self, rules, lower=True, **options):
        self.rules, self.words = str(rules), {"a": 0, "b": 1, "[UNK]": 2}
        super().__init__(lower=lower, unk_token="[UNK]", **options)

    @property
    def vocab_size(self):
        return len(self.words)

    def get_vocab(self):
        return dict(self.words)

    def _convert_token_to_id(self, token):
        return self.words.get(token, 2)

    def _convert_id_to_token(self, index):
        return list(self.words)[index]


def test_a_slow_tokenizers_key_holds_its_options_and_files(tmp_path):
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).write_text(text)
    key = tokenizer_key(Slow(tmp_path / "a"))
    assert key == tokenizer_key(Slow(tmp_path / "b"))
    assert key != tokenizer_key(Slow(tmp_path / "c"))
    assert key != tokenizer_key(Slow(tmp_path / "a", lower=False))
    added = Slow(tmp_path / "a")
    added.add_tokens(["zz"])
    assert key != tokenizer_key(added)


def test_a_tokenizer_is_trained_once_on_the_first_split(monkeypatch):
    text = shares("the cat sat " * 30 + "zebra " * 4, names=("train", "val"), last=(8,))
    first = trained_tokenizer(text, 60)
    assert not any("z" in token for token in first.get_vocab())
    monkeypatch.setattr(module, "train_tokenizer", None)
    assert trained_tokenizer(text, 60).get_vocab() == first.get_vocab()


MEASURE = """
import resource, sys
from milkweed.data import MaskedText, Text
*files, second = sys.argv[1:]
for file in files:
    data = Text(file) if second == "characters" else MaskedText(file, second, 192)
    data.split("train")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_SELF"), reason="needs Unix")
@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["tokens", "characters"])
def test_memory_does_not_grow_with_the_text(tmp_path, kind):
    line = "Tokens of a text of any size are made once and kept in files that are read in place.\n"
    tokenizer = train_tokenizer(line, 100)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    files = [tmp_path / "small.txt", tmp_path / "large.txt"]
    for file, count in zip(files, (4_000, 100_000), strict=True):
        file.write_text(line * count)
    second = "characters" if kind == "characters" else str(tmp_path / "tokenizer")
    command = [sys.executable, "-c", MEASURE, *map(str, files), second]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    peaks = [int(peak) for peak in found.stdout.split()]
    # 8 MiB more text; as lists of Python's integers its tokens would take 130 MiB, its characters 60.
    assert peaks[1] - peaks[0] < 20 * 1024, peaks


def test_training_works_on_files_that_are_mapped(tmp_path):
    (tmp_path / "story.txt").write_text("the cat sat on the mat\n" * 300)
    data = MaskedText(str(tmp_path / "story.txt"), vocabulary_size=60, length=16, batch_size=4)
    assert isinstance(data.split("train").tokens, np.memmap)
    batch = next(iter(data.train_dataloader()))
    assert batch["inputs"].shape == batch["targets"].shape == (4, 16)
