"""Arrays of one's own, from files and from Python."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import milkweed as mw


def arrays(count=60, length=12):
    random = np.random.RandomState(0)
    return random.randn(count, length, 2).astype(np.float32), np.array(["a", "b", "c"] * (count // 3))


def test_tensors_from_python_in_one_line():
    data = mw.data.Arrays(torch.randn(40, 9), torch.arange(40) % 2)
    assert (data.length, data.d_input, data.d_output, data.class_names) == (9, 1, 2, ("0", "1"))
    batch = next(iter(data.train_dataloader())) if data.batch_size <= len(data.split("train")) else None
    assert batch is None or batch["inputs"].shape[1:] == (9, 1)


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors"])
def test_files_give_what_the_arrays_give(kind, tmp_path):
    x, _ = arrays()
    labels = np.arange(60) % 3
    if kind == "npy":
        np.save(tmp_path / "x.npy", x)
        np.save(tmp_path / "y.npy", labels)
        sources = f"{tmp_path}/x.npy", f"{tmp_path}/y.npy"
    else:
        file = tmp_path / f"all.{kind}"
        np.savez(file, x=x, y=labels) if kind == "npz" else save_file({"x": x, "y": labels}, file)
        sources = f"{file}:x", f"{file}:y"
    found, expected = mw.data.Arrays(*sources), mw.data.Arrays(x, labels)
    for name in ("train", "val", "test"):
        assert torch.equal(found.split(name).inputs, expected.split(name).inputs)
        assert torch.equal(found.split(name).targets, expected.split(name).targets)


def test_every_class_is_split_alike_and_features_are_standardised():
    x, y = arrays()
    data = mw.data.Arrays(x * [3, 5] + [1, -1], y)
    counts = {name: np.bincount(data.split(name).targets, minlength=3).tolist() for name in ("train", "val", "test")}
    assert counts == {"train": [16] * 3, "val": [2] * 3, "test": [2] * 3}
    training = data.split("train").inputs.double()
    assert training.mean((0, 1)).abs().max() < 1e-6
    assert (training.std((0, 1), correction=0) - 1).abs().max() < 1e-6


def test_splits_that_are_given():
    x, y = arrays()
    split = np.array(["train"] * 40 + ["validation"] * 10 + ["test"] * 10)
    data = mw.data.Arrays(x, y, split=split, standardise=False)
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [40, 10, 10]
    assert torch.equal(data.split("test").inputs, torch.from_numpy(x[50:]))


def test_padding_may_hold_anything():
    x, y = arrays()
    lengths = np.arange(60) % 12 + 1
    for row, length in zip(x, lengths, strict=True):
        row[length:] = np.nan
    data = mw.data.Arrays(x, y, lengths)
    for name in ("train", "val", "test"):
        split = data.split(name)
        assert split.inputs.isfinite().all()
        assert all((row[length:] == 0).all() for row, length in zip(split.inputs, split.lengths, strict=True))
    valid = [x[i, : lengths[i]] for i in range(60)]
    assert any(np.isfinite(each).all() for each in valid)


@pytest.mark.parametrize("shape", [(60,), (60, 4), (60, 12, 3)])
def test_numbers_to_predict(shape):
    x, _ = arrays()
    data = mw.data.Arrays(x, np.random.RandomState(1).randn(*shape))
    assert data.class_names is None
    assert data.d_output == (1 if len(shape) == 1 else shape[-1])
    assert data.split("train").targets.shape[1:] == (shape[1:] or (1,))


def test_tokens():
    tokens = np.random.RandomState(0).randint(0, 7, (40, 5))
    data = mw.data.Arrays(tokens, np.arange(40) % 2, tokens=True)
    assert data.d_input == 7
    assert data.split("train").inputs.dtype == torch.int64


BAD = {
    "one target too few": (lambda x, y: {"targets": y[:-1]}, "targets must be one for each of the 60 inputs"),
    "complex": (lambda x, y: {"inputs": x.astype(complex)}, "inputs must be real numbers"),
    "four dimensions": (lambda x, y: {"inputs": x[..., None]}, r"inputs must be \(N, L\) or \(N, L, D\)"),
    "NaN": (lambda x, y: {"inputs": np.where(x > 2, np.nan, x)}, "hold NaN or infinity"),
    "length 0": (lambda x, y: {"lengths": np.zeros(60, int)}, "lengths must lie in 1…12"),
    "floats as lengths": (lambda x, y: {"lengths": np.ones(60)}, r"lengths must be \(N,\) integers"),
    "an unknown split": (lambda x, y: {"split": np.array(["x"] * 60)}, "none of train, val, test"),
    "no test": (lambda x, y: {"split": np.array(["train"] * 50 + ["val"] * 10)}, "no sample is for 'test'"),
    "one class": (lambda x, y: {"targets": np.zeros(60, int)}, "only one class"),
    "shares": (lambda x, y: {"val": 0.6, "test": 0.5}, "leave nothing to train on"),
    "no file": (lambda x, y: {"inputs": "nowhere.npy"}, "there is no file"),
    "another file": (lambda x, y: {"inputs": "x.mat"}, "arrays are read from"),
    "a list of numbers": (lambda x, y: {"inputs": [1, 2]}, r"\(N, L\) or \(N, L, D\).*got shape \(2,\)"),
    "a rugged list": (lambda x, y: {"inputs": [[1], [2, 3]]}, "no array can be made of the list.*rows of one length"),
    "a number": (lambda x, y: {"inputs": 3}, "must be an array, a tensor or the name of a file"),
    "nothing": (lambda x, y: {"inputs": x[:0], "targets": y[:0]}, "inputs hold no sequence"),
    "labels of two kinds": (
        lambda x, y: {"targets": np.array([None, "a"] * 30, dtype=object)},
        "real numbers or texts",
    ),
    "targets of another length": (lambda x, y: {"targets": np.zeros((60, 9, 2))}, "L=12, K"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, message = BAD[case]
    x, y = arrays()
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        mw.data.Arrays(**({"inputs": x, "targets": y} | change(x, y))).setup()


def test_a_class_that_training_never_sees():
    x, y = arrays()
    split = np.array(["train"] * 40 + ["val"] * 10 + ["test"] * 10)
    y = y.astype(object)
    y[55] = "rare"
    with pytest.raises(ValueError, match="'rare' occurs in the test split and not in the training split"):
        mw.data.Arrays(x, y, split=split).setup()


def test_pickles_are_not_read(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects, which are not read"):
        mw.data.Arrays(f"{tmp_path}/x.npy", np.zeros(1, int)).setup()


def test_a_damaged_file_is_named(tmp_path):
    for name in ("x.npy", "x.npz", "x.safetensors"):
        (tmp_path / name).write_bytes(b"damaged file")
        with pytest.raises(ValueError, match=rf"{name}"):
            mw.data.Arrays(f"{tmp_path}/{name}", np.zeros(1, int)).setup()
