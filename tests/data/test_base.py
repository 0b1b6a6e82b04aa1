"""What a data module of one's own lacks is said when it is set up."""

import numpy as np
import pytest
import torch

from milkweed.data import SequenceClassificationData, SequenceData
from milkweed.data.batches import ArrayDataset


def splits(**changes):
    given = {"inputs": torch.randn(6, 5, 2), "targets": torch.arange(6) % 3, "lengths": torch.full((6,), 5)} | changes
    return {name: ArrayDataset(**given) for name in ("train", "val", "test")}


def module(loaded, **attributes):
    class Pulses(SequenceClassificationData):
        length, d_input, class_names = 5, 2, ("a", "b", "c")

        def load(self):
            return loaded() if callable(loaded) else loaded

    for name, value in attributes.items():
        if value is None:
            delattr(Pulses, name)
        else:
            setattr(Pulses, name, value)
    return Pulses(2, 0, None)


BAD = {
    "no dictionary": (lambda: list(splits()), {}, r"Pulses\.load must return a dictionary with train, val, test"),
    "no test": (lambda: {name: splits()[name] for name in ("train", "val")}, {}, "gives no test split; it gives train"),
    "a tensor": (lambda: splits() | {"val": torch.ones(3)}, {}, "the val split must be an ArrayDataset.*got Tensor"),
    "numpy": (lambda: splits(inputs=np.zeros((6, 5, 2))), {}, "inputs must be a tensor.*ndarray; use torch.as_tensor"),
    "float64": (lambda: splits(inputs=torch.zeros(6, 5, 2).double()), {}, "got torch.float64; use .float()"),
    "two axes": (lambda: splits(inputs=torch.zeros(6, 5)), {}, r"got shape \(6, 5\); for one feature use inputs\["),
    "a width": (lambda: splits(inputs=torch.zeros(6, 5, 3)), {}, "train split: inputs have 3 features.*d_input=2"),
    "tokens": (lambda: splits(inputs=torch.full((6, 5), 9)), {"d_input": 9}, "the token 9, and d_input=9"),
    "few targets": (lambda: splits(targets=torch.zeros(5).long()), {}, r"one for each of 6 inputs; got \(5,\)"),
    "targets that are numbers": (lambda: splits(targets=torch.zeros(6)), {}, "the numbers of classes, int64"),
    "another class": (lambda: splits(targets=torch.full((6,), 3)), {}, "targets must lie in 0…2"),
    "lengths of floats": (lambda: splits(lengths=torch.ones(6)), {}, r"lengths must be \(N,\) integers"),
    "a length of 0": (lambda: splits(lengths=torch.zeros(6).long()), {}, "lengths must lie in 1…5"),
    "no class names": (splits, {"class_names": None}, r"Pulses\.class_names must be the names.*got None"),
    "one class": (splits, {"class_names": ("a",)}, "two or more different names"),
    "no length": (splits, {"length": None}, r"Pulses\.length must be a whole number; got None"),
    "no width": (splits, {"d_input": "2"}, r"Pulses\.d_input must be a whole number; got '2'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_missing_is_said_at_setup(case):
    loaded, attributes, message = BAD[case]
    with pytest.raises((TypeError, ValueError), match=message):
        module(loaded, **attributes).setup()


def test_what_is_right_is_taken():
    data = module(splits)
    data.setup()
    assert next(iter(data.train_dataloader()))["inputs"].shape == (2, 5, 2)
    assert next(iter(module(lambda: splits(inputs=torch.zeros(6, 5).long())).val_dataloader()))["inputs"].shape == (
        2,
        5,
    )


def test_data_of_another_kind_need_no_arrays():
    class Rows(SequenceData):
        length, d_input, d_output = 5, 2, 1

        def load(self):
            return splits(targets=torch.randn(6, 1))

    Rows(2, 0, None).setup()
