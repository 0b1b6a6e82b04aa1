"""How much memory a conversion takes beyond the model, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import milkweed as mw
from benchmarks.case import Work
from benchmarks.footprint import peak_extra_bytes
from milkweed.convert.input_moments import Calibration, InputMoments

WIDE = 1536
# Runs the command while a thread looks at how much memory is not mapped from files, as the dense weights are.
COMMAND = """
import re, sys, threading, time
from pathlib import Path
import transformers.models.llama.modeling_llama
import milkweed.plots.conversion_page
from milkweed.cli import main

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

peak = before = anonymous()

def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.001)

threading.Thread(target=watch, daemon=True).start()
assert main(sys.argv[1:]) == 0
print("MiB", peak - before)
"""


def gathering(size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDE, 8, bias=False))
    inputs = [torch.randn(size["rows"], WIDE) for _ in range(2)]
    return Work({"ours": lambda: {"found": Calibration(model, {"0": model[0]}, inputs)["0"]}}, dict, {})


def test_moments_take_half_a_matrix_in_float64_and_their_sum_hardly_more():
    ours = peak_extra_bytes(gathering, {"rows": 4096}, ["ours"])["ours"]
    if ours is None:
        pytest.skip("this system has no resettable high-water mark of memory")
    matrix = 8 * WIDE**2
    assert InputMoments.bytes(WIDE) < 0.6 * matrix
    # Beside them a thousand of the inputs in float64 and float32, and one strip.
    assert ours < 0.6 * matrix + 3 * 8 * 1024 * WIDE


@pytest.mark.parametrize("order", [None, torch.randperm(600, generator=torch.Generator().manual_seed(1))])
def test_moments_in_strips_are_those_of_the_whole_matrix(order):
    x = torch.randn(3000, 600, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 1
    moments = InputMoments(600)
    for rows in (x[:1], x[1:1000], x[1000:]):
        moments.add(rows)
    if order is not None:
        moments, x = moments.reordered(order), x[:, order]
    torch.testing.assert_close(moments.mean, x.mean(0))
    torch.testing.assert_close(moments.covariance(centred=True), torch.cov(x.T, correction=0))
    torch.testing.assert_close(moments.covariance(centred=False), x.T @ x / len(x))
    weight = torch.randn(40, 600, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    outputs = x @ weight.T
    whole = outputs.square().sum() / len(x)
    assert moments.energy(weight, centred=False) == pytest.approx(float(whole), rel=1e-9)
    about_mean = (outputs - outputs.mean(0)).square().sum() / len(x)
    assert moments.energy(weight, centred=True) == pytest.approx(float(about_mean), rel=1e-9)


def test_later_passes_go_no_further_than_they_must():
    model = nn.Sequential(*(nn.Linear(24, 24) for _ in range(4)))
    layers = {name: model[int(name)] for name in "0123"}
    called = []
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *_, name=name: called.append(name))
    inputs = [torch.randn(8, 24)]
    whole = Calibration(model, layers, inputs)
    expected = {name: whole[name].covariance(centred=True) for name in layers}
    called.clear()
    split = Calibration(model, layers, inputs, memory_limit=1)
    for name, covariance in expected.items():
        assert torch.equal(split[name].covariance(centred=True), covariance)
    # The first pass sees which layers are called; a later one ends before its layer does its work.
    assert called == [*"0123", "0", *"01", *"012"]


def test_a_layer_that_is_called_several_times_is_seen_each_time_in_every_pass():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x, times):
            for _ in range(times):
                x = self.b(self.a(x).tanh()).tanh()
            return x

    torch.manual_seed(0)
    model, batches = Loop(), [(torch.randn(4, 12), times) for times in (1, 3, 0, 2)]
    layers = {"a": model.a, "b": model.b}
    whole, split = Calibration(model, layers, batches), Calibration(model, layers, batches, memory_limit=1)
    for name in layers:
        assert split[name].count == 24
        assert torch.equal(split[name].covariance(centred=True), whole[name].covariance(centred=True))


def test_a_calibrated_command_needs_little_beside_the_mapped_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    if not Path("/proc/self/status").is_file() or "RssAnon" not in Path("/proc/self/status").read_text():
        pytest.skip("this system does not tell mapped memory from other")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=16000, hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=4
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "dense")
    words = [f"word{index}" for index in range(100)]
    (tmp_path / "dense" / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    transformers.BertTokenizerFast(str(tmp_path / "dense" / "vocab.txt")).save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text("\n".join([" ".join(words)] * 34))
    arguments = ["dense", "--calibrate", "text.txt", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "convert", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # 150 now; with the outputs of 32 texts over the whole vocabulary, and keys and values of all layers, it was 570.
    assert float(done.stdout.split()[-1]) < 300
    assert mw.load_pretrained(tmp_path / "out").config.use_cache
