import pytest

from milkweed._suggest import UsageError
from milkweed.cli.options import apply_overrides, split_overrides
from milkweed.train.recipe.words import natural_options

CONFIG = {
    "seed": 0,
    "model": {"class_path": "SequenceModel", "init_args": {"d_model": 64, "layer": {"name": "s4d"}, "linear": None}},
    "trainer": {"max_epochs": 3, "callbacks": None},
}


def test_overrides_are_taken_out_wherever_they_stand():
    rest, overrides = split_overrides(
        ["--model.d_model", "32", "digits", "--task.lr=1e-3", "--name", "x", "--data.permuted", "--seed", "4"]
    )
    assert rest == ["digits", "--name", "x"]
    assert overrides == [("model.d_model", 32), ("task.lr", 1e-3), ("data.permuted", True), ("seed", 4)]


@pytest.mark.parametrize(
    ("text", "value"),
    [("-1", -1), ("null", None), ("[1, 2]", [1, 2]), ("{name: s4d}", {"name": "s4d"}), ("a: : b", "a: : b")],
)
def test_values_are_yaml(text, value):
    assert split_overrides(["--model.x", text])[1] == [("model.x", value)]


def test_natural_names_leave_out_init_args():
    assert natural_options(CONFIG) == {
        "seed": 0,
        "model.d_model": 64,
        "model.layer.name": "s4d",
        "model.linear": None,
        "trainer.max_epochs": 3,
        "trainer.callbacks": None,
    }


def test_overrides_change_a_copy():
    changed = apply_overrides(
        CONFIG, [("model.d_model", 8), ("model.layer.d_state", 4), ("model.linear.name", "dense")]
    )
    assert changed["model"]["init_args"] == {
        "d_model": 8,
        "layer": {"name": "s4d", "d_state": 4},
        "linear": {"name": "dense"},
    }
    assert CONFIG["model"]["init_args"]["layer"] == {"name": "s4d"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.d_modle", r"unknown option --model.d_modle; did you mean --model.d_model\?"),
        ("trainer.max_epoch", r"did you mean --trainer.max_epochs\?"),
        ("model.d_model.x", "unknown option --model.d_model.x"),
        ("model.zzz", "model has d_model, layer.name"),
        ("model.d_input", "--model.d_input cannot be set: the data decide it"),
        ("trainer.max_steps", "--trainer.max_steps cannot be set: .* --trainer.max_epochs"),
    ],
)
def test_unknown_names_are_refused(name, message):
    with pytest.raises(UsageError, match=message):
        apply_overrides(CONFIG, [(name, 1)])
