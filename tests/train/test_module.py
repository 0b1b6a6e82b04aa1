"""The one module: its names in checkpoints, and runs of version 0.1.0, whose tasks were modules of their own."""

import shutil

import pytest
import torch
import yaml
from torch import nn

from milkweed.cli import main
from milkweed.cli.build import resolve
from milkweed.cli.recipe import find_recipe
from milkweed.convert import load_pretrained
from milkweed.tasks import Classification, Glue, Language, MaskedLanguage, Regression, Retrieval
from milkweed.train.module import SequenceModule
from milkweed.train.optimisation import Optimisation
from milkweed.train.recipe.build import build
from milkweed.train.run_config import read_config

SMALL = [
    *("--model.d_model", "8", "--model.depth", "1", "--model.layer.d_state", "4", "--data.batch_size", "32"),
    *("--data.limit", "96", "--trainer.max_epochs", "3", "--trainer.checkpoint_every_n_steps", "2"),
]
USUAL = {  # as in 0.1.0
    Classification: Optimisation(1e-3, 0.01, None, 0, "cosine"),
    Regression: Optimisation(1e-3, 0.01, None, 0, "cosine"),
    Language: Optimisation(1e-3, 0.1, None, 0, "cosine"),
    MaskedLanguage: Optimisation(8e-4, 0.0125, None, 0, "linear"),
    Glue: Optimisation(5e-5, 0.01, None, 0, "linear"),
    Retrieval: Optimisation(5e-6, 0.0, None, 0, "linear"),
}


@pytest.mark.parametrize("kind", USUAL)
def test_every_task_is_trained_as_usual_unless_told_otherwise(kind):
    task = kind(3) if kind in {Classification, Glue} else kind()
    assert SequenceModule(nn.Linear(1, 3), task).optimisation == USUAL[kind]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    assert main(["train", "digits", "--out", str(out), *SMALL]) == 0
    return out / "digits"


def as_in_0_1_0(run, target, step):
    """A run that stopped at a step, with the names that 0.1.0 wrote."""
    shutil.copytree(run, target)
    for path in (target / "checkpoints").glob("*.ckpt"):
        if path.name != f"step-{step:09d}.ckpt":
            path.unlink()
    path = target / "checkpoints" / f"step-{step:09d}.ckpt"
    content = torch.load(path, weights_only=True)
    del content["milkweed"]
    state = {name.removeprefix("task."): tensor for name, tensor in content["state_dict"].items()}
    content["state_dict"] = {name.replace(".mix.", "."): tensor for name, tensor in state.items()}
    assert any(name.startswith("losses.train_loss") for name in content["state_dict"])
    torch.save(content, path)
    config = dict(read_config(target / "config.yaml"))
    config["task"]["class_path"] = "milkweed.tasks.classification.Classification"
    (target / "config.yaml").write_text(yaml.safe_dump(config))


def test_a_run_of_0_1_0_goes_on_in_the_middle_of_an_epoch(run, tmp_path):
    as_in_0_1_0(run, tmp_path / "digits", 8)
    assert main(["train", "digits", "--out", str(tmp_path), "--resume", "auto"]) == 0
    expected, found = load_pretrained(run).state_dict(), load_pretrained(tmp_path / "digits").state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    rows = [(folder / "metrics.csv").read_text().splitlines() for folder in (run, tmp_path / "digits")]
    assert [row.rpartition(",")[0] for row in rows[0]] == [row.rpartition(",")[0] for row in rows[1]]
    assert main(["evaluate", str(tmp_path / "digits")]) == 0


def test_rates_are_options_of_the_task(run):
    stored = read_config(run / "config.yaml")
    assert "optimisation" not in stored
    assert stored["task"]["init_args"] == {
        "label_smoothing": 0.0,
        "class_weights": None,
        "calibrate": False,
        "lr": 0.01,
        "weight_decay": 0.05,
        "ssm_lr": None,
        "warmup_steps": 40,
        "schedule": "cosine",
    }
    module = build(resolve(find_recipe("digits").values, [("task.lr", 0.5), ("task", "Classification")])).module
    assert module.optimisation == Optimisation(0.5, 0.01, None, 0, "cosine")


class Own(SequenceModule):
    """A user's LightningModule, which does all by itself."""

    def __init__(self, model: nn.Module, num_classes: int, lr: float = 0.5) -> None:
        super().__init__(model, Classification(num_classes), Optimisation(lr))


def test_a_lightning_module_of_ones_own_is_a_task_too():
    values = find_recipe("digits").values | {"task": {"class_path": f"{__name__}.Own", "init_args": {"lr": 0.25}}}
    resolved = resolve(values, [("model.d_model", 8)])
    assert resolved["task"]["init_args"] == {"lr": 0.25}
    module = build(resolved).module
    assert isinstance(module, Own)
    assert module.optimisation.lr == 0.25
