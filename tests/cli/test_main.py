import sys

import pytest

from milkweed.cli import COMMANDS, main
from milkweed.cli.errors import describe, readable_type_error


def refused(arguments, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return " ".join(captured.err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "command='trian' is unknown; did you mean 'train'?"),
        (["train"], "the following arguments are required: RECIPE"),
        (["train", "digts"], "recipe='digts' is unknown; did you mean 'digits'?"),
        (["train", "digits", "--nmae", "x"], "unknown argument --nmae; did you mean --name?"),
        (["train", "digits", "--model.d_modle", "8"], "did you mean --model.d_model?"),
        (["train", "digits", "--model.d_model", "wide"], "model.d_model='wide' does not fit; expected int"),
        (["train", "digits", "--model", "MlpMxer"], "did you mean 'MlpMixer'?"),
        (["train", "digits", "--model.layer.d_stat", "8"], "did you mean 'd_state'?"),
        (["train", "digits", "--task.schedule", "linear"], "expected 'cosine', 'constant'"),
        (["train", "digits", "--data.batch_size", "5000"], "batch_size=5000 exceeds the 1258 training samples"),
        (["train", "digits", "--resume", "no.ckpt"], "checkpoint no.ckpt does not exist"),
        (["train", "smnist", "--data.root", "nowhere"], "data.root=nowhere is no folder"),
        (
            ["train", "digits", "--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "7"],
            "divide",
        ),
        (["train", "digits", "--trainer.strategy", "dpp"], "invalid strategy"),
        (["evaluate", "nowhere"], "nowhere is no run"),
        (["inspect", "digits", "--levels", "x"], "invalid int value"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(arguments, capsys)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_run_folder_is_refused_first(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    # The missing data would be found only later.
    message = refused(["train", "smnist", "--data.root", "nowhere", "--out", str(tmp_path / "file")], capsys)
    assert "is a file; choose another --out" in message


def test_failure_at_the_first_step_leaves_nothing(tmp_path, capsys, monkeypatch):
    import torch

    from milkweed.data import Digits

    monkeypatch.setattr(Digits, "d_input", 2)
    message = refused(["train", "digits", "--out", str(tmp_path / "new" / "runs")], capsys)
    assert "d_input=2" in message
    assert list(tmp_path.iterdir()) == []
    torch.set_grad_enabled(True)


def test_debug_shows_the_traceback(monkeypatch):
    with pytest.raises(ValueError, match="digts"):
        main(["train", "digts", "--debug"])
    monkeypatch.setenv("MILKWEED_DEBUG", "1")
    with pytest.raises(ValueError, match="digts"):
        main(["train", "digts"])


def test_overview_and_version(capsys):
    for arguments in ([], ["--help"]):
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        assert all(command in shown for command in COMMANDS)
    assert main(["--version"]) == 0


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"bench"}))
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(main([command, "--help"]))
    assert stop.value.code == 0
    assert f"milkweed {command}" in capsys.readouterr().out.split("example:")[1]


def test_help_of_a_recipe_lists_its_options(capsys):
    assert main(["train", "digits", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--model.layer.d_state" in shown
    assert "--task.lr" in shown


def test_missing_packages_are_named_with_their_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.delitem(sys.modules, "milkweed.cli.build", raising=False)
    assert 'pip install "milkweed[train]"' in refused(["train", "digits"], capsys)


def test_unreadable_reports_are_passed_on():
    assert readable_type_error("something else") is None
    assert describe(ValueError("plain")) == "plain"
