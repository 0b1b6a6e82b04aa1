"""`milkweed export` as typed: what it writes and shows, and what it refuses."""

import importlib.util
import shutil

import numpy as np
import pytest
import torch

import milkweed as mw
from milkweed.cli import main

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What a training run leaves of its model."""
    folder = tmp_path_factory.mktemp("runs") / "runs"
    torch.manual_seed(0)
    model = mw.models.SequenceModel(2, 3, d_model=8, depth=1, layer={"name": "s4d", "d_state": 8}, pooling="none")
    mw.save_pretrained(model, folder / "mine")
    mixer = mw.models.MlpMixer(2, 3, length=5, d_model=8, depth=1)
    mw.save_pretrained(mixer, folder / "mixer")
    return folder.parent


@pytest.fixture
def folder(runs, tmp_path, monkeypatch):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def refused(arguments, capsys):
    assert main(["export", *arguments]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return " ".join(captured.err.split())


def test_the_model_of_a_run(folder, capsys):
    assert main(["export", "runs/mixer", "--onnx", "out/mixer.onnx", "--threads", "1"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("out/mixer.onnx", "opset 20", "input inputs batch_size × 5 × 2", "output outputs batch_size × 3"):
        assert text in shown
    assert "largest difference from torch" in shown
    assert "ms ONNX Runtime" in shown
    assert "1 thread)" in shown
    session = onnxruntime.InferenceSession("out/mixer.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(4, 5, 2)
    with torch.no_grad():
        expected = mw.load_pretrained("runs/mixer").double()(x.double()).numpy()
    np.testing.assert_allclose(session.run(None, {"inputs": x.numpy()})[0], expected, atol=1e-5)
    assert "--onnx out/mixer.onnx exists; choose another name, or replace it with --overwrite" in refused(
        ["runs/mixer", "--onnx", "out/mixer.onnx"], capsys
    )
    assert main(["export", "runs/mixer", "--onnx", "out/mixer.onnx", "--overwrite", "--int8"]) == 0
    assert "after" in capsys.readouterr().out
    assert [path.name for path in (folder / "out").iterdir()] == ["mixer.onnx"]


def test_one_step_for_streaming(folder, capsys):
    assert main(["export", "runs/mine", "--onnx", "step.onnx", "--stepper"]) == 0
    assert "next_state_0" in capsys.readouterr().out
    assert "--stepper: runs/mixer holds a MlpMixer, which has no steps" in refused(
        ["runs/mixer", "--onnx", "other.onnx", "--stepper"], capsys
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/mine"], "say where to write the model with --onnx FILE.onnx"),
        (["mine", "--onnx", "a.onnx"], "mine does not exist; did you mean runs/mine?"),
        (["runs/mine", "--onnx", "a.bin"], "--onnx a.bin must end in .onnx, as in 'a.onnx'"),
        (["runs/mine", "--onnx", "runs"], "--onnx runs must end in .onnx"),
        (["runs", "--onnx", "a.onnx"], "runs holds neither model.safetensors of milkweed nor config.json"),
        (["runs/mine", "--onnx", "a.onnx", "--opset", "11"], "--opset 11 is not supported; expected 18 to 23"),
        (["runs/mixer", "--onnx", "a.onnx", "--length", "9"], "--length 9 cannot be set"),
        (["runs/mine", "--onnx", "a.onnx", "--length", "0"], "'0' is no whole number from 1 on"),
        (["runs/mine", "--onnx", "runs/mine/model.safetensors/a.onnx"], "cannot be written"),
        (["runs/mine", "--int", "--onnx", "a.onnx"], "unknown argument --int; did you mean --int8?"),
    ],
)
def test_what_is_refused(arguments, message, folder, capsys):
    assert message in refused(arguments, capsys)
    assert not (folder / "a.onnx").exists()


def test_a_missing_package_is_named(folder, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxscript" else find(name, *a))
    assert "needs onnxscript: pip install 'milkweed[onnx]'" in refused(["runs/mine", "--onnx", "a.onnx"], capsys)
