"""Damaged or foreign M2-BERT checkpoints are refused by name, and nothing in them is run."""

import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from milkweed.convert.checkpoints.m2 import load_m2_bert, read_m2_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden" / "m2_bert_tiny.safetensors"
WORDS = "bert.embeddings.word_embeddings.weight"
FILTER = "bert.encoder.layer.1.attention.filter_fn2."
MLP = "bert.encoder.layer.1.mlp.gated_layers.weight"
IN_LINEAR = "bert.encoder.layer.1.attention.in_linear.weight"


@pytest.fixture
def state():
    return {key: value for key, value in load_file(GOLDEN).items() if not key.startswith("__")}


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        # A NaN that nobody sees at first; and one that must not be taken for a contradiction between two tensors.
        (f"{FILTER}implicit_filter.2.weight", lambda t: t * float("nan"), "2.weight' holds NaN or infinity"),
        (WORDS, lambda t: t * float("nan"), "word_embeddings.weight' holds NaN or infinity"),
        (f"{FILTER}implicit_filter.3.freq", lambda t: t * float("nan"), "freq' holds NaN or infinity"),
        (f"{FILTER}bias", lambda t: t + float("inf"), "bias' holds NaN or infinity"),
        # Numbers that would be rounded or cut to fit.
        (f"{FILTER}bias", lambda t: t.long(), "bias' must be real floating point; got torch.int64"),
        (f"{FILTER}bias", lambda t: t > 0, "bias' must be real floating point; got torch.bool"),
        (f"{FILTER}bias", lambda t: t.to(torch.complex64), "must be real floating point; got torch.complex64"),
        (WORDS, lambda t: t.long(), "must be real floating point; got torch.int64"),
        (WORDS, lambda t: t.to("meta"), "holds no numbers: it is on the meta device"),
        (WORDS, lambda t: "words", "must be a tensor; got str"),
        (WORDS, lambda t: None, "must be a tensor; got NoneType"),
        # As many numbers in another order are another matrix.
        (IN_LINEAR, lambda t: t.T.contiguous(), "size mismatch for encoder.blocks.1.mixer.in_linear.weight"),
        (MLP, lambda t: t.reshape(2, -1, t.shape[2]), "size mismatch for encoder.blocks.1.mlp.up.weight"),
    ],
)
def test_tensors(state, key, change, message):
    state[key] = change(state[key])
    with pytest.raises(ValueError, match=message):
        load_m2_bert(state)


def test_what_is_no_state_dict(state):
    for given in (None, [state], str(GOLDEN)):
        with pytest.raises(
            TypeError, match=r"state must be tensors by name; got .*; read files with read_m2_checkpoint"
        ):
            load_m2_bert(given)
    with pytest.raises(ValueError, match="1 is not the name of a tensor"):
        load_m2_bert(state | {1: torch.zeros(1)})


def test_arrays_of_numpy_will_do(state):
    model = load_m2_bert({key: value.numpy() for key, value in state.items()})
    expected = load_m2_bert(state).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"hello world" * 10, b"<!DOCTYPE html>", b"version https://git-lfs.github"])
def test_files_that_torch_did_not_write(tmp_path, content):
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"pytorch_model.bin cannot be read: it is damaged, or no file that torch.save"
    ):
        read_m2_checkpoint(file)


def test_damaged_files(state, tmp_path):
    file = tmp_path / "model.pt"
    torch.save(state, file)
    whole = file.read_bytes()
    flipped = bytearray(whole)
    for place in range(2000, 2100):
        flipped[place] ^= 0xFF
    for content in (whole[: len(whole) // 2], whole[:10], bytes(flipped)):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read: it is damaged"):
            read_m2_checkpoint(file)


def test_what_composer_writes_beside_the_model(state, tmp_path):
    file = tmp_path / "latest-rank0.pt"
    rng = [{"python": (3, (1, 2), None), "numpy": np.random.RandomState(0).get_state(), "torch": torch.get_rng_state()}]
    clock = {"epoch": 1, "total_wct": datetime.timedelta(seconds=3)}
    torch.save({"state": {"model": state, "timestamp": clock, "run_name": "m2"}, "rng": rng}, file)
    found = read_m2_checkpoint(file)
    assert set(found) == set(state)
    assert all(torch.equal(value, state[name]) for name, value in found.items())


def test_files_that_unpack_to_more_than_they_are(tmp_path, state):
    import zipfile

    torch.save(state, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("plain/data/9999", bytes(10**7))
    with pytest.raises(ValueError, match="but unpacks to"):
        read_m2_checkpoint(tmp_path / "plain.pt")


def test_tensors_that_repeat_what_is_stored(tmp_path, state):
    torch.save(state | {WORDS: torch.zeros(1, 1).expand(10**6, 10**6)}, tmp_path / "strides.pt")
    with pytest.raises(ValueError, match=r"word_embeddings.weight' of shape .* but not as many numbers"):
        read_m2_checkpoint(tmp_path / "strides.pt")
    one = torch.zeros(1000)
    torch.save({f"a.{index}": one for index in range(1000)}, tmp_path / "names.pt")
    with pytest.raises(ValueError, match="it repeats them"):
        read_m2_checkpoint(tmp_path / "names.pt")


def test_sizes_are_compared_before_anything_is_made(state):
    wide = torch.zeros(1, 1).expand(2, 10**6)
    repeated = ("modulation", "pos_emb.t", "decoder.weight")
    state = {name: value for name, value in state.items() if not any(each in name for each in repeated)}
    with pytest.raises(ValueError, match="size mismatch"):
        load_m2_bert(state | {WORDS: wide})
