import re
import sys

import pytest
import torch

import milkweed.cli
from milkweed.cli import COMMANDS, main
from milkweed.cli.errors import describe
from milkweed.cli.recipe import shipped_recipes
from milkweed.train.recipe.check import readable_type_error


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
        (
            ["train", "digits", "--task.schedule", "step"],
            "task.schedule='step' does not fit; expected 'cosine'",
        ),
        (["train", "digits", "--data.batch_size", "5000"], "batch_size=5000 exceeds the 1258 training samples"),
        (["train", "digits", "--resume", "no.ckpt"], "checkpoint no.ckpt does not exist"),
        (["train", "smnist", "--data.root", "nowhere"], "--data.root nowhere is not a folder"),
        (
            ["train", "digits", "--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "7"],
            "divide",
        ),
        (["train", "digits", "--trainer.strategy", "dpp"], "invalid strategy"),
        (
            ["train", "digits", "--trainer.accumulate_grad_batches", "0"],
            "trainer.accumulate_grad_batches=0 must be at least 1",
        ),
        (["train", "digits", "--trainer.check_val_every_n_epoch", "0"], "must be at least 1; --trainer.limit_val"),
        (["train", "digits", "--trainer.val_check_interval", "0"], "trainer.val_check_interval=0 must be above 0"),
        (["train", "digits", "--trainer.gradient_clip_val", "-1"], "must be at least 0; null clips nothing"),
        (["train", "digits", "--trainer.checkpoint_every_n_steps", "0"], "null saves after epochs only"),
        (["train", "digits", "--trainer.precision", "17"], "'bf16-mixed', '32-true', '64-true' or '64', '32'"),
        (["train", "digits", "--trainer.densify"], "trainer.densify=True must be null or options such as {at: 0.9}"),
        (["train", "digits", "--trainer.densify.att", "1"], "did you mean --trainer.densify.at?"),
        (["train", "digits", "--trainer.densify.at", "1"], "densify.at=1 must be a fraction of all steps"),
        (["evaluate", "nowhere"], "nowhere is not a run"),
        (["inspect", "digits", "--levels", "x"], "invalid int value"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(arguments, capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    lr:", "    lrr:", "unknown option --task.lrr; did you mean --task.lr?"),
        ("  max_epochs:", "  max_epoch:", "unknown option --trainer.max_epoch; did you mean --trainer.max_epochs?"),
        ("  max_epochs: 20", "  max_steps: 20", "--trainer.max_steps cannot be set"),
        ("  max_epochs: 20", "  accumulate_grad_batches: 0", "trainer.accumulate_grad_batches=0 must be at least 1"),
        ("  max_epochs: 20", "  densify: {att: 0.9}", "did you mean --trainer.densify.at?"),
        ("init_args:", "init_arg:", "data's key='init_arg' is unknown; did you mean 'init_args'?"),
        ("class_path:", "classpath:", "data's key='classpath' is unknown; did you mean 'class_path'?"),
        ("    batch_size: 64", "    d_input: 1", "unknown option --data.d_input; data has batch_size"),
        ("    depth: 2", "    d_input: 1", "--model.d_input cannot be set: the data decide it"),
        ("batch_size: 64", "batch_size: [", "is no valid YAML"),
        ("init_args:\n    batch_size: 64", "init_args: [64]", "data.init_args=[64] must be options by name, e.g. {"),
        ("class_path: Digits\n  ", "", "data lacks its class_path, one of"),
        (
            "init_args:\n    batch_size: 64",
            "init_args: 64",
            "data.init_args=64 must be options by name, e.g. {batch_size",
        ),
    ],
)
def test_a_slip_in_a_recipe_of_ones_own_is_named_with_the_nearest_option(old, new, message, tmp_path, capsys):
    text = shipped_recipes()["digits"].read_text()
    assert old in text
    (tmp_path / "mine.yaml").write_text(text.replace(old, new))
    assert message in refused(["train", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "runs")], capsys)
    assert not (tmp_path / "runs").exists()


def test_unwritable_run_folder_is_refused_first(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    # The missing data would be found only later.
    message = refused(["train", "smnist", "--data.root", "nowhere", "--out", str(tmp_path / "file")], capsys)
    assert "is a file; choose another folder" in message


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


@pytest.mark.parametrize("command", sorted(COMMANDS))
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


@pytest.mark.parametrize("columns", [80, 50])
def test_names_of_options_are_never_cut(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["train", "digits", "--help"]) == 0
    shown = capsys.readouterr().out.partition("options of recipe")[2]
    assert "…" not in shown
    assert all(len(line) <= columns for line in shown.splitlines())
    if columns == 80:
        assert "--trainer.checkpoint_every_n_steps " in shown
    else:  # folded in half the width
        assert re.search(r"--trainer.checkpoint_ev +.*\nery_n_steps +", shown)


def test_help_shows_the_options_of_densify_with_their_meaning(capsys):
    assert main(["train", "digits-monarch", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("--trainer.densify.at 0.9", "--trainer.densify.state reset", "--trainer.densify.warmup_steps 0"):
        assert text in shown
    assert "below 1, a fraction of all" in shown


def test_help_leaves_out_the_marks_of_code_and_links(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["train", "m2-bert-mlm", "--help"]) == 0
    shown = capsys.readouterr().out.partition("options of recipe")[2].partition("--trainer")[0]
    assert "Further arguments of milkweed.nn.LongConv, for all long convolutions" in shown
    assert "`" not in shown
    assert '"legacy": padding is read like any other token' in " ".join(shown.split())


def test_missing_packages_are_named_with_their_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.delitem(sys.modules, "milkweed.cli.build", raising=False)
    assert 'pip install "milkweed[train]"' in refused(["train", "digits"], capsys)


@pytest.mark.parametrize("text", ["init_args:", "init_args: {}"])
def test_a_section_may_have_no_options(text, tmp_path):
    recipe = shipped_recipes()["digits"].read_text().replace("init_args:\n    batch_size: 64", text)
    (tmp_path / "mine.yaml").write_text(recipe)
    assert main(["inspect", str(tmp_path / "mine.yaml"), "--levels", "1"]) == 0


def test_modules_of_the_users_are_blamed_for_what_they_lack(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "module_that_lacks_one.py").write_text("import surely_not_installed\n")
    message = refused(["--import", "module_that_lacks_one", "recipes"], capsys)
    assert "module_that_lacks_one.py cannot be imported: No module named 'surely_not_installed'" in message
    assert "milkweed[train]" not in message


@pytest.mark.usefixtures("table")
def test_inspect_says_where_layers_of_the_users_must_make_tensors(capsys):
    from torch import nn

    class Counted(nn.Module):
        def __init__(self, d_model):
            super().__init__()

        def forward(self, u, lengths=None):
            return u + torch.tensor([1.0, 2.0]).sum() * torch.arange(u.shape[1], device="cpu")[:, None]

    milkweed.register("layer", "counted_on_the_cpu", Counted)
    message = refused(["inspect", "digits", "--model.layer", "{name: counted_on_the_cpu}"], capsys)
    assert "torch.arange(L, device=u.device)" in message


@pytest.mark.parametrize("text", ["", "Stopped. It is saved."])
def test_ctrl_c_says_that_the_program_stopped(text, capsys, monkeypatch):
    def stop(arguments):
        raise KeyboardInterrupt(*[text] if text else [])

    monkeypatch.setattr(milkweed.cli, "dispatch", stop)
    assert main(["train", "digits"]) == 130
    assert capsys.readouterr().err == f"\n{text or 'Stopped.'}\n"


def test_unreadable_reports_are_passed_on():
    assert readable_type_error("something else") is None
    assert describe(ValueError("plain")) == "plain"


def test_what_is_no_class_of_the_kind_is_named_without_the_parsers_words():
    text = 'Parser key "model":\n  Import path os.path does not correspond to a subclass of Model'
    assert describe(ValueError(text)) == "os.path is no Model; give the import path of a class that is one"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("use data.length=27 or less", "use --data.length 27 or less"),
        ("lower it (task.lr=-1.0).", "lower it (--task.lr -1.0)."),
        (
            "data.file='a b.txt' lacks; use data.file=x/y.txt; or",
            "--data.file 'a b.txt' lacks; use --data.file x/y.txt; or",
        ),
        ("use data.size=2 model.layer.d_state=4", "use --data.size 2 --model.layer.d_state 4"),
        ("--model.d_model=1e3 does not fit", "--model.d_model=1e3 does not fit"),
        ("data.init_args=64 must be options", "data.init_args=64 must be options"),
        ("milkweed.data.length=3 is in my.data.length=3", "milkweed.data.length=3 is in my.data.length=3"),
    ],
)
def test_options_that_the_library_names_are_shown_as_flags(said, shown):
    assert describe(ValueError(said)) == shown
