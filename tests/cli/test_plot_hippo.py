import re

import pytest
from PIL import Image

from milkweed import ssm
from milkweed.cli import main
from milkweed.plots import hippo as figures
from milkweed.plots.hippo import remember


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "FRAMES", 3)
    monkeypatch.setattr(figures, "FRAMES_PER_SECOND", 2)
    return tmp_path


def refused(arguments, capsys):
    assert main(["plot", "hippo", *arguments]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert "--debug" not in captured.err  # every refusal is one of the command's own
    return " ".join(captured.err.split())


def table(text):
    return dict(re.findall(r"^ (\S.*?\S|\S) {2,}(\S.*?) *$", text, re.MULTILINE))


def test_the_command_alone_draws(folder, capsys):
    assert main(["plot", "hippo"]) == 0
    shown = capsys.readouterr().out
    found = table(shown)
    assert found["N"] == "64"
    assert found["measure"] == "all the past: e^-t"
    assert found["rank of the correction"] == "1"
    assert found["largest |eigenvalue|"] == "64; of the normal part 1303"
    memory = remember("legs", 64)
    assert found["RMSE of the past"] == f"{memory.rmse(500):.3g} of the signal's rms at t = 4.17"
    assert "Drawn to hippo-legs.png" in shown
    assert [path.name for path in folder.iterdir()] == ["hippo-legs.png"]
    with Image.open("hippo-legs.png") as image:
        assert image.format == "PNG"


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ssm.BASES)
def test_every_basis(folder, capsys, name):
    # A size of its own is chosen for each, at which the past is read back well enough to be seen.
    assert main(["plot", "hippo", "--basis", name]) == 0
    found = table(capsys.readouterr().out)
    assert float(found["RMSE of the past"].split()[0]) < 1
    rank = ssm.BASES[name].rank
    assert found["rank of the correction"] == ("none makes A normal" if rank is None else str(rank))
    assert [path.name for path in folder.iterdir()] == [f"hippo-{name}.png"]


@pytest.mark.parametrize(
    ("arguments", "out"),
    [
        (["--basis", "legt"], "hippo-legt.gif"),
        (["--scaled"], "hippo-legs-scaled.gif"),
        (["--out", "a/[b].gif"], "a/[b].gif"),
    ],
)
def test_animations(folder, capsys, arguments, out):
    assert main(["plot", "hippo", "--animate", "--N", "9", *arguments]) == 0
    shown = capsys.readouterr().out
    assert f"Drawn to {out}" in shown
    if "--scaled" in arguments:
        assert table(shown)["measure"] == "the whole past, evenly: 1/t on [0, t]"
    with Image.open(folder / out) as image:
        assert image.format == "GIF"
        assert image.n_frames >= 3


@pytest.mark.parametrize(
    ("name", "shown"), [("legt", "beyond float64"), ("lmu", "beyond float64"), ("legs", "64"), ("chebt", "0")]
)
def test_eigenvalues_that_rounding_errors_reach_are_not_printed(folder, capsys, name, shown):
    assert main(["plot", "hippo", "--basis", name, "--N", "64"]) == 0
    assert table(capsys.readouterr().out)["largest |eigenvalue|"].startswith(shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--basis", "leg"], "--basis='leg' is unknown; did you mean 'legt'?"),
        (
            ["--basis", "fout", "--N", "64"],
            "--N 64 does not suit fout, a constant and pairs of cos and sin; try --N 63",
        ),
        (["--N", "0"], "--N 0 is out of range; expected 1 .. 256"),
        (["--N", "257"], "--N 257 is out of range; expected 1 .. 256"),
        (["--N", "x"], "argument --N: invalid int value: 'x'"),
        (["--basis", "legt", "--scaled"], "--scaled is for --basis legs, which can cover the whole past"),
        (["--anmate"], "unknown argument --anmate; did you mean --animate?"),
        (["legs"], "unknown argument legs"),
        (["--out", "x.gif"], "--out x.gif must end in .png; try --out x.png"),
        (["--animate", "--out", "x.png"], "--out x.png must end in .gif; try --out x.gif"),
        (["--out", "folder.png"], "--out folder.png is a folder; choose a file, e.g. --out folder.png/hippo-legs.png"),
        (["--out", "file/x.png"], "is a file, not a folder; choose another file"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(arguments, message, capsys, folder):
    (folder / "folder.png").mkdir()
    (folder / "file").write_bytes(b"")
    before = sorted(folder.rglob("*"))
    assert message in refused(arguments, capsys)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("arguments", [[], ["--animate"]])
def test_a_failing_disk_leaves_nothing(folder, capsys, monkeypatch, arguments):
    from matplotlib.figure import Figure

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    assert "cannot be written: No space left on device" in refused(arguments, capsys)
    assert list(folder.iterdir()) == []


def test_a_folder_without_write_permission_is_refused_first(folder, capsys, monkeypatch):
    # Whoever runs the tests may be allowed everything.
    monkeypatch.setattr("os.access", lambda *_: False)
    assert f"{folder} is not writable" in refused([], capsys)


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plot", "hippo", "--help"])
    assert stop.value.code == 0
    assert "milkweed plot hippo" in capsys.readouterr().out.split("example:")[1]
