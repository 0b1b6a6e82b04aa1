"""Every public call refuses a wrong argument by its name: no raw error, no wrong type taken, no size that hangs."""

import importlib
import multiprocessing
import resource

import numpy as np
import pytest
import torch

from milkweed import nn, ops, ssm, structures
from tests.argument_calls import CALLS, NOT_CALLED, prepare
from tests.contracts.arguments import ABSURD, faults

MODULES = ("", ".ops", ".structures", ".ssm", ".nn", ".nn.filters", ".models", ".convert")
MEMORY = 12 << 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("calls")
    prepare(made)
    return made


@pytest.mark.parametrize("name", CALLS)
def test_one_wrong_argument(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert list(faults(CALLS[name])) == []


def test_every_public_name_is_called():
    public = {
        name
        for module in MODULES
        for name in importlib.import_module(f"milkweed{module}").__all__
        if callable(getattr(importlib.import_module(f"milkweed{module}"), name))
    }
    assert public - {name.split(".")[-1].split(" ")[0] for name in CALLS} - NOT_CALLED == set()


def _absurd(folder: str, queue) -> None:
    import os

    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    queue.put([f"{name}: {fault}" for name, call in CALLS.items() for fault in faults(call, ABSURD)])


def test_absurd_sizes_are_refused(folder):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_absurd, args=(str(folder), queue))
    process.start()
    found = queue.get()
    process.join()
    assert found == []


@pytest.mark.parametrize("size", [np.int64(8), np.int32(8), np.uint8(8)])
def test_sizes_may_be_numpy_integers(size):
    layer = nn.MonarchLinear(size, size, 2)
    assert type(layer.in_features) is int
    assert ssm.hippo("legs", size)[0].shape == (8, 8)
    assert structures.monarch_dct(size).shape == (8, 8)
    assert ops.diagonal_ssm_kernel(torch.randn(3, 2), -torch.rand(3, 2), size).shape == (8,)
    assert nn.S4D(4, size, dt_min=np.float32(1e-3))(torch.randn(1, size, 4)).shape == (1, 8, 4)


def test_messages_say_what_to_do():
    with pytest.raises(TypeError, match=r"^x must be a tensor; got ndarray; use torch\.as_tensor\(x\)$"):
        nn.MonarchLinear(8, 8, 2)(np.ones(8))
    with pytest.raises(TypeError, match=r"^A must be a tensor; got list; use torch\.as_tensor\(A\)$"):
        ssm.discretize([[1.0]], torch.ones(1), 0.1)
    with pytest.raises(TypeError, match=r"^bias must be True or False; got 'no'$"):
        nn.MonarchLinear(8, 8, 2, bias="no")
    with pytest.raises(ValueError, match=r"^n must be below 2\*\*31; got 1099511627776$"):
        structures.monarch_dft(2**40)
    with pytest.raises(TypeError, match=r"^dtype must be a torch.dtype, or None; got 'float32'; use e.g."):
        structures.monarch_dct(4, dtype="float32")
    with pytest.raises(ValueError, match=r"^device must be a device such as 'cpu' or 'cuda'; got 'gpu'$"):
        nn.LowRankLinear(8, 8, 2, device="gpu")


@pytest.mark.parametrize("make", [lambda: nn.S4D(4, 8), lambda: nn.LongConv(4, 9), lambda: nn.GatedMixer(4, 9)])
@pytest.mark.parametrize("wrong", [None, [1.0], np.ones((2, 4)), "u"], ids=lambda value: type(value).__name__)
def test_layers_and_their_steppers_use_the_same_words(make, wrong):
    layer = make()
    stepper = layer.stepper()
    said = set()
    for call in (
        layer,
        lambda u: stepper(u, stepper.initial_state(2)),
        lambda u: stepper.read(u, stepper.initial_state(2)),
    ):
        with pytest.raises(TypeError, match=r"^u must be a tensor") as error:
            call(wrong)
        said.add(str(error.value))
    assert len(said) == 1


def test_checks_leave_compiled_graphs_whole():
    layer = nn.S4D(4, 8).eval()
    u = torch.randn(1, 9, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(u), layer(u))
    exported = torch.export.export(layer, (u,)).module()
    torch.testing.assert_close(exported(u), layer(u))
