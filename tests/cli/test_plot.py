import re
import time

import numpy as np
import pytest
import scipy.fft
import torch
from safetensors.torch import save_file

from milkweed.cli import main
from milkweed.cli.plot.common import late_progress
from milkweed.cli.plot.monarch import make_transform

ROW = re.compile(r"^\s*(\d+)\s+([\d,]+)\s+([\d.]+)%\s+([\d.]+)%\s*$", re.MULTILINE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tensors():
    return {
        "layers.0.weight": torch.randn(24, 40),
        "layers.1.weight": torch.randn(48, 32, dtype=torch.bfloat16),
        "layers.1.bias": torch.randn(40),
        "spectrum": torch.randn(16, 16, dtype=torch.complex64),
        "ids": torch.arange(16).view(4, 4),
        "broken": torch.tensor([[1.0, float("nan")], [float("inf"), 2.0]]),
    }


def table(text):
    """Parameters, share and error by nblocks."""
    return {
        int(nblocks): (int(parameters.replace(",", "")), float(share), float(error))
        for nblocks, parameters, share, error in ROW.findall(text)
    }


def truncated_slices(dense, nblocks, rank):
    lost = 0.0
    width = dense.shape[1] // nblocks
    for k in range(nblocks):
        for l in range(nblocks):  # noqa: E741 - the paper's letter
            values = np.linalg.svd(dense[l::nblocks, k * width : (k + 1) * width], compute_uv=False)
            lost += (values[rank:] ** 2).sum()
    return np.sqrt(lost) / np.linalg.norm(dense)


def refused(arguments, capsys):
    assert main(["plot", *arguments]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert "--debug" not in captured.err  # every refusal is one of the command's own
    return " ".join(captured.err.split())


def test_the_command_alone_draws(folder, capsys):
    assert main(["plot", "monarch"]) == 0
    shown = capsys.readouterr().out
    assert set(table(shown)) == {1, 2, 4, 8}
    assert "Drawn to monarch-dct.png" in shown
    assert [path.name for path in folder.iterdir()] == ["monarch-dct.png"]
    assert (folder / "monarch-dct.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("rank", [None, 2])
def test_errors_in_natural_order_are_those_of_truncated_slices(folder, capsys, rank):
    arguments = ["plot", "monarch", "dct", "--order", "natural"]
    assert main(arguments if rank is None else [*arguments, "--rank", str(rank)]) == 0
    cosine = scipy.fft.dct(np.eye(64), axis=0, norm="ortho")
    for nblocks, (parameters, share, error) in table(capsys.readouterr().out).items():
        kept = 64 // nblocks**2 if rank is None else rank
        assert error == pytest.approx(100 * truncated_slices(cosine, nblocks, kept), abs=0.006)
        assert parameters == 2 * 64 * nblocks * kept
        assert share == pytest.approx(100 * parameters / 64**2, abs=0.06)


@pytest.mark.parametrize(("transform", "rank"), [("dct", 2), ("dst", 2), ("dft", 1), ("hadamard", 1)])
def test_transforms_are_monarch_matrices_in_their_own_order(folder, capsys, transform, rank):
    assert main(["plot", "monarch", transform, "--rank", str(rank), "--nblocks", "8"]) == 0
    found = table(capsys.readouterr().out)
    assert found[8][2] == 0
    assert found[4][2] > 50


@pytest.mark.parametrize("transform", ["dct", "dft", "dst"])
def test_the_fast_order_only_moves_columns(transform):
    natural, fast = (make_transform(transform, 16, fast) for fast in (False, True))
    overlap = (natural.mH @ fast).abs()
    torch.testing.assert_close(overlap, (overlap > 0.5).to(overlap.dtype), atol=1e-5, rtol=0)
    assert (overlap > 0.5).sum(0).eq(1).all()


def test_a_matrix_of_a_file(folder, capsys, tensors):
    save_file(tensors, "model.safetensors")
    assert main(["plot", "monarch", "model.safetensors", "--tensor", "layers.1.weight", "--nblocks", "2"]) == 0
    shown = capsys.readouterr().out
    assert "layers.1.weight, 48 × 32" in shown
    dense = tensors["layers.1.weight"].double().numpy()
    found = table(shown)
    assert set(found) == {1, 2, 4}
    for nblocks, kept in ((2, 8), (4, 2)):
        assert found[nblocks][2] == pytest.approx(100 * truncated_slices(dense, nblocks, kept), abs=0.006)
    assert (folder / "monarch-layers.1.weight.png").is_file()


def test_the_only_matrix_needs_no_name_and_its_name_may_be_odd(folder, capsys, tensors):
    save_file({"a/b [c]": tensors["spectrum"], "bias": tensors["layers.1.bias"]}, "one.safetensors")
    assert main(["plot", "monarch", "one.safetensors", "--nblocks", "1", "--out", "new/folder/[x].png"]) == 0
    shown = capsys.readouterr().out
    assert "a/b [c], 16 × 16" in shown
    assert "Drawn to new/folder/[x].png" in shown
    assert (folder / "new" / "folder" / "[x].png").is_file()
    assert main(["plot", "monarch", "one.safetensors"]) == 0
    assert (folder / "monarch-a-b-c-.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: WHAT"),
        (["monach"], "WHAT='monach' is unknown; did you mean 'monarch'?"),
        (["monarch", "dctt"], "SOURCE='dctt' is unknown; did you mean 'dct'?"),
        (["monarch", "--nblock", "4"], "did you mean --nblocks?"),
        (["monarch", "no.safetensors"], "SOURCE no.safetensors does not exist; expected a .safetensors file"),
        (["monarch", "."], "SOURCE . is a folder"),
        (["monarch", "junk.safetensors"], "junk.safetensors is no readable safetensors file"),
        (["monarch", "cut.safetensors"], "cut.safetensors is no readable safetensors file"),
        (["monarch", "empty.safetensors"], "empty.safetensors is no readable safetensors file"),
        (["monarch", "model.safetensors"], "holds 5 matrices; pick one with --tensor: broken (2, 2), ids (4, 4)"),
        (
            ["monarch", "model.safetensors", "--tensor", "layer.0.weight"],
            "--tensor layer.0.weight is not in model.safetensors; did you mean layers.0.weight?",
        ),
        (["monarch", "model.safetensors", "--tensor", "layers.1.bias"], "has shape (40,); expected a matrix"),
        (
            ["monarch", "model.safetensors", "--tensor", "ids"],
            "--tensor ids in model.safetensors holds int64; expected",
        ),
        (["monarch", "model.safetensors", "--tensor", "broken"], "holds 2 NaN or infinite entries; expected finite"),
        (["monarch", "vectors.safetensors"], "holds no matrix among its 1 tensors; expected a 2-D one"),
        (["monarch", "model.safetensors", "--n", "8"], "--n 8 belongs to a transform, but SOURCE model.safetensors"),
        (["monarch", "model.safetensors", "--order", "fast"], "--order fast belongs to a transform"),
        (["monarch", "dct", "--tensor", "x"], "--tensor x picks from a file, but SOURCE dct is a transform"),
        (["monarch", "hadamard", "--n", "60"], "--n 60 does not suit hadamard: n must be a power of two"),
        (["monarch", "--n", "0"], "--n 0 does not suit dct"),
        (["monarch", "--n", "1000000"], "--n 1000000 is too large to write out; expected at most 8192"),
        (["monarch", "--nblocks", "16"], "nblocks=16 needs in_features >= 241; got in_features=64"),
        (["monarch", "--nblocks", "16"], "Powers of two that fit: --nblocks 1, 2, 4, 8"),
        (["monarch", "--nblocks", "0"], "nblocks must be at least 1; got nblocks=0"),
        (["monarch", "--rank", "17"], "rank must be in 1 .. 16 (the smaller side of a slice); got rank=17"),
        (["monarch", "--nblocks", "x"], "argument --nblocks: invalid int value: 'x'"),
        (["monarch", "--out", "figure.pdf"], "--out figure.pdf must end in .png; try --out figure.png"),
        (["monarch", "--out", "folder.png"], "--out folder.png is a folder"),
        (["monarch", "--out", "junk.safetensors/x.png"], "is a file, not a folder; choose another file"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(arguments, message, capsys, folder, tensors):
    save_file(tensors, "model.safetensors")
    save_file({"bias": tensors["layers.1.bias"]}, "vectors.safetensors")
    (folder / "junk.safetensors").write_bytes(b"PK\x03\x04" * 100)
    (folder / "cut.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-8])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "folder.png").mkdir()
    before = sorted(folder.rglob("*"))
    assert message in refused(arguments, capsys)
    assert sorted(folder.rglob("*")) == before


def test_a_failing_disk_leaves_nothing(folder, capsys, monkeypatch):
    from matplotlib.figure import Figure

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    assert "--out monarch-dct.png cannot be written: No space left on device" in refused(["monarch"], capsys)
    assert list(folder.iterdir()) == []


def test_a_folder_without_write_permission_is_refused_first(folder, capsys, monkeypatch):
    # Whoever runs the tests may be allowed everything.
    monkeypatch.setattr("os.access", lambda *_: False)
    assert f"{folder} is not writable" in refused(["monarch"], capsys)


def test_a_long_list_of_matrices_is_cut(folder, capsys):
    save_file({f"w{index:02}": torch.zeros(2, 2) for index in range(30)}, "many.safetensors")
    message = refused(["monarch", "many.safetensors"], capsys)
    assert "w11 (2, 2) and 18 more" in message
    assert "w12" not in message


@pytest.mark.parametrize("subject", [[], ["monarch"]])
def test_help_has_an_example(subject, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plot", *subject, "--help"])
    assert stop.value.code == 0
    assert "milkweed plot monarch" in capsys.readouterr().out.split("example:")[1]


@pytest.mark.parametrize(("terminal", "seconds", "seen"), [(True, 0.3, True), (True, 0, False), (False, 0.3, False)])
def test_progress_is_shown_on_a_terminal_when_it_takes_long(terminal, seconds, seen, capsys, monkeypatch):
    monkeypatch.setattr("milkweed.cli.plot.common.PATIENCE", 0.1)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with late_progress(2) as show:
        show("nblocks 1", 0)
        time.sleep(seconds)
    assert ("nblocks 1" in capsys.readouterr().err) is seen
