import re

import pytest
import torch
from safetensors.torch import save_file

from milkweed.cli import main
from milkweed.convert import save_pretrained
from milkweed.models import MlpMixer, SequenceModel
from milkweed.plots.kernels import timescales

ROW = re.compile(r"^ *(\S+) +(S4D?) +(\d+) +([\d.,]+) +([\d.,]+) +([\d,]+) lags? *$", re.MULTILINE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model():
    return SequenceModel(1, 2, 4, 2, {"name": "s4d", "d_state": 4})


def refused(arguments, capsys):
    assert main(["plot", "kernel", *arguments]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert "--debug" not in captured.err  # every refusal is one of the command's own
    return " ".join(captured.err.split())


@pytest.mark.parametrize("run", ["runs/tiny", "runs/tiny/", "runs/tiny/model.safetensors", "."])
def test_a_run_is_drawn(folder, capsys, model, monkeypatch, run):
    save_pretrained(model, "runs/tiny")
    if run == ".":
        monkeypatch.chdir(folder / "runs" / "tiny")
    assert main(["plot", "kernel", run, "--out", "x.png"]) == 0
    rows = ROW.findall(capsys.readouterr().out)
    assert [row[:3] for row in rows] == [("blocks.0.layer", "S4D", "4"), ("blocks.1.layer", "S4D", "4")]
    for row in rows:
        assert row[3] == f"{timescales(model.get_submodule(row[0]).filter).median():,.1f}"
        assert 1 <= int(row[5].replace(",", "")) <= 1024
    with open("x.png", "rb") as file:
        assert file.read(4) == b"\x89PNG"


def test_one_layer_and_the_default_name(folder, capsys):
    model = SequenceModel(1, 2, 4, 2, {"name": "s4", "d_state": 4, "bidirectional": True, "channels": 2})
    save_pretrained(model, "runs/a [b]")
    arguments = ["plot", "kernel", "runs/a [b]", "--layer", "blocks.1.layer", "--length", "50", "--linear"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "a [b]: kernels, 50 lags" in shown
    assert [row[0] for row in ROW.findall(shown)] == ["blocks.1.layer"]
    assert "Drawn to kernel-a-b-.png" in shown
    assert (folder / "kernel-a-b-.png").is_file()


def test_a_deep_model_is_drawn_in_part(folder, capsys):
    save_pretrained(SequenceModel(1, 2, 2, 9, {"name": "s4d", "d_state": 2}), "deep.safetensors")
    assert main(["plot", "kernel", "deep.safetensors", "--length", "4"]) == 0
    shown = capsys.readouterr().out
    assert len(ROW.findall(shown)) == 8
    assert "The first 8 of 9 layers; --layer NAME draws another." in shown
    assert (folder / "kernel-deep.png").is_file()
    assert main(["plot", "kernel", "deep.safetensors", "--length", "4", "--layer", "blocks.8.layer"]) == 0
    assert [row[0] for row in ROW.findall(capsys.readouterr().out)] == ["blocks.8.layer"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: RUN"),
        (["runs/tini"], "RUN runs/tini does not exist; did you mean runs/tiny?"),
        (["elsewhere/x"], "RUN elsewhere/x does not exist; name a folder such as runs/smnist"),
        (["runs"], "RUN runs has no model.safetensors; name the folder of a run"),
        (["runs/begun"], "RUN runs/begun has no model.safetensors; finish its training with --resume auto"),
        (["notes.txt"], "RUN notes.txt is no .safetensors file"),
        (["junk.safetensors"], "RUN junk.safetensors cannot be read: junk.safetensors is corrupt or truncated"),
        (["foreign.safetensors"], "foreign.safetensors has no milkweed config in its metadata"),
        (["mixer"], "RUN mixer is a MlpMixer without state space layers; it has"),
        (
            ["runs/tiny", "--layer", "blocks.1.layr"],
            "--layer blocks.1.layr is no state space layer of runs/tiny; did you mean blocks.1.layer? "
            "It has: blocks.0.layer, blocks.1.layer",
        ),
        (["runs/tiny", "--layer", "head"], "--layer head is no state space layer of runs/tiny; It has: blocks.0.layer"),
        (["runs/tiny", "--length", "1"], "--length 1 is out of range; expected 2 .. 131072"),
        (["runs/tiny", "--lenght", "9"], "unknown argument --lenght; did you mean --length?"),
        (["diverged"], "blocks.0.layer holds NaN or infinite numbers in A_real; its training diverged"),
        (["unstable"], "the kernels of blocks.0.layer grow beyond all numbers; a smaller --length"),
        (["runs/tiny", "--out", "x.pdf"], "--out x.pdf must end in .png; try --out x.png"),
        (["runs/tiny", "--out", "runs/a.png"], "--out runs/a.png is a folder"),
        (["runs/tiny", "--out", "notes.txt/x.png"], "is a file, not a folder; choose another file"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(arguments, message, capsys, folder, model):
    save_pretrained(model, "runs/tiny")
    save_pretrained(MlpMixer(1, 2, 16, d_model=4, depth=1), "mixer")
    save_file({"weight": torch.zeros(2)}, "foreign.safetensors")
    unstable = SequenceModel(1, 2, 4, 1, {"name": "s4d", "d_state": 4, "decay": "none"})
    with torch.no_grad():
        model.blocks[0].layer.filter.A_real[0, 0] = float("nan")
        unstable.blocks[0].layer.filter.A_real.fill_(-50)
    save_pretrained(model, "diverged")
    save_pretrained(unstable, "unstable")
    (folder / "junk.safetensors").write_bytes(b"PK\x03\x04" * 100)
    (folder / "notes.txt").write_text("")
    (folder / "runs" / "begun").mkdir()
    (folder / "runs" / "begun" / "config.yaml").write_text("")
    (folder / "runs" / "a.png").mkdir()
    before = sorted(folder.rglob("*"))
    assert message in refused(arguments, capsys)
    assert sorted(folder.rglob("*")) == before


def test_a_failing_disk_leaves_nothing(folder, capsys, model, monkeypatch):
    from matplotlib.figure import Figure

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    save_pretrained(model, "tiny")
    monkeypatch.setattr(Figure, "savefig", full)
    assert "--out kernel-tiny.png cannot be written: No space left on device" in refused(["tiny"], capsys)
    assert [path.name for path in folder.iterdir()] == ["tiny"]


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plot", "kernel", "--help"])
    assert stop.value.code == 0
    assert "milkweed plot kernel runs/smnist" in capsys.readouterr().out.split("example:")[1]
