"""Files of tensors: the same bytes for the same content, whatever process writes them."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import milkweed as mw
from milkweed._tensor_files import write_tensors

METADATA = {
    "é\u2028": 'x\x01\n\t"\\/\x7f😀\ud7ff',
    "b": "",
    "a": json.dumps({"k": [1, 2]}),
    **{f"key {number}": str(number) for number in range(20)},
}
KINDS = [
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.bool,
    torch.int8,
    torch.uint16,
    torch.int64,
    torch.complex64,
]


def tensors():
    found = {f"ü.{kind}": torch.arange(6).to(kind).reshape(2, 3) for kind in KINDS}
    return found | {"empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5)}


@pytest.mark.parametrize("metadata", [None, {}, METADATA])
def test_what_is_written_is_read(metadata, tmp_path):
    file = tmp_path / "x.safetensors"
    write_tensors(tensors(), file, metadata)
    with safe_open(file, "pt") as stored:
        assert (stored.metadata() or {}) == (metadata or {})
        assert set(stored.keys()) == tensors().keys()
        for name, tensor in tensors().items():
            found = stored.get_tensor(name)
            assert found.dtype == tensor.dtype
            assert found.shape == tensor.shape
            assert found.flatten().view(torch.uint8).equal(tensor.flatten().view(torch.uint8))


def test_only_the_order_of_the_metadata_differs_from_safetensors_own(tmp_path):
    ours, theirs = tmp_path / "a", tmp_path / "b"
    write_tensors(tensors(), ours, METADATA)
    save_file(tensors(), theirs, METADATA)
    assert sorted(ours.read_bytes()) == sorted(theirs.read_bytes())
    size = 8 + int.from_bytes(ours.read_bytes()[:8], "little")
    assert ours.read_bytes()[size:] == theirs.read_bytes()[size:]
    assert json.loads(ours.read_bytes()[8:size]) == json.loads(theirs.read_bytes()[8:size])


def test_the_order_in_which_things_are_given_makes_no_difference(tmp_path):
    write_tensors(tensors(), tmp_path / "a", METADATA)
    write_tensors(dict(reversed(tensors().items())), tmp_path / "b", dict(reversed(METADATA.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


PROGRAM = """
import sys, torch, milkweed as mw
from torch import nn
folder = sys.argv[1]
torch.manual_seed(0)
mw.save_pretrained(mw.models.SequenceModel(1, 2, d_model=4, depth=1), folder + "/model")
net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
plan = mw.plan_conversion(net, {"0": mw.MonarchConfig(2)}, tokens=None)
plan.report.save(folder + "/report.json")
mw.save_pretrained(net, folder + "/own")
mw.add_adapters_(net, {"0": mw.AdapterConfig(nblocks=2)}, train="2")
mw.save_adapters(net, folder)
mw.remove_adapters_(net)
net.requires_grad_(True)
mw.convert_(net, plan)
mw.save_pretrained(net, folder + "/converted")
mw.structures.save(mw.monarch_dft(8), folder + "/dft.safetensors")
"""


def test_equal_models_adapters_and_structures_are_equal_files_in_every_process(tmp_path, monkeypatch):
    found = []
    for process in ("this", "another"):
        folder = tmp_path / process
        folder.mkdir()
        command = [sys.executable, "-c", PROGRAM, str(folder)]
        if process == "this":
            monkeypatch.setattr(sys, "argv", command[2:])
            exec(PROGRAM, {})
        else:
            subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "1"}, check=True)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        found.append({file.relative_to(folder): file.read_bytes() for file in files})
    assert len(found[0]) == 6
    assert found[0] == found[1]


def test_options_in_another_order_make_no_difference(tmp_path):
    spec = {"name": "s4d", "d_state": 4, "init": "lin"}
    files = []
    for name, layer in (("a", spec), ("b", dict(reversed(spec.items())))):
        torch.manual_seed(0)
        model = mw.models.SequenceModel(1, 2, d_model=4, depth=1, layer=layer)
        files.append(mw.save_pretrained(model, tmp_path / name))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_loaded_model_is_saved_to_the_bytes_it_came_from(tmp_path):
    torch.manual_seed(0)
    model = mw.models.SequenceModel(1, 2, d_model=16, depth=2)
    mw.convert_(model, mw.plan_conversion(model, {"re:.*output": mw.MonarchConfig(2)}, tokens=None))
    file = mw.save_pretrained(model, tmp_path / "a")
    again = mw.save_pretrained(mw.load_pretrained(file), tmp_path / "b")
    assert file.read_bytes() == again.read_bytes()


def test_memory_is_not_doubled(tmp_path):
    """Tensors go to the file as they lie in memory: views of one storage excepted, nothing is copied."""
    from resource import RUSAGE_SELF, getrusage

    net = nn.Linear(4096, 8192, bias=False)  # 128 MiB
    before = getrusage(RUSAGE_SELF).ru_maxrss
    write_tensors({"weight": net.weight.detach()}, tmp_path / "x.safetensors", {"a": "b"})
    assert getrusage(RUSAGE_SELF).ru_maxrss - before < 48 * 1024
