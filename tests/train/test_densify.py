"""Structured layers that become dense in the middle of a training."""

import io
import json
import shutil
import sys
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from milkweed.cli import main
from milkweed.convert import densify_, load_pretrained
from milkweed.convert.record import structured_layers
from milkweed.data import Digits
from milkweed.models import MlpMixer
from milkweed.models.base import build_model
from milkweed.nn import MonarchLinear
from milkweed.tasks import Classification
from milkweed.train import session
from milkweed.train.callbacks import read_rows
from milkweed.train.checkpoints import KeepCheckpoints, load_weights
from milkweed.train.densify import Densify, DensifyOptions
from milkweed.train.module import SequenceModule
from milkweed.train.optimisation import Optimisation
from milkweed.train.quiet_lightning import quietly

STEPS = 12  # 4 epochs of 3
SWITCH = 7


class Probe(Callback):
    """Looks at the training at the start of every batch, before or after the layers become dense."""

    def __init__(self, folder=None):
        self.folder, self.losses, self.states, self.rates = folder, [], [], []

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        with torch.no_grad():
            self.losses.append(task.eval().task.loss("val", task(batch["inputs"]), batch).item())
        task.train()
        optimizer = trainer.optimizers[0]
        names = {parameter: name for name, parameter in task.model.named_parameters()}
        self.states.append({names[p]: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()})
        self.rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})
        if self.folder:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def new_task(linear=None, **options):
    torch.manual_seed(0)
    model = MlpMixer(1, 10, 64, d_model=16, depth=1, linear=linear or {"name": "monarch", "nblocks": 4}, dropout=0.1)
    return SequenceModule(model, Classification(10), Optimisation(lr=0.01, **options))


def fit(task, *callbacks, **options):
    with quietly():
        trainer = Trainer(
            max_epochs=4,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
            **options,
        )
        trainer.fit(task, datamodule=Digits(batch_size=32, limit=96))
    return trainer


@pytest.fixture(scope="module", params=["reset", "carry"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    before, after = Probe(), Probe(folder)
    task = new_task(warmup_steps=2)
    trainer = fit(task, before, Densify(SWITCH, request.param), after)
    return request.param, task, trainer, before, after, folder


def test_loss_is_the_same_right_before_and_after(run):
    _, _, _, before, after, _ = run
    assert len(before.losses) == STEPS
    for one, other in zip(before.losses, after.losses, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_layers_are_dense_from_the_switch_on(run):
    _, task, _, before, after, _ = run
    assert not structured_layers(task.model)
    assert task.densified.step == SWITCH
    dense = "blocks.0.tokens.up.weight"
    assert dense in {name for name, _ in task.model.named_parameters()}
    assert dense not in before.states[SWITCH]
    assert dense in before.states[SWITCH + 1]
    assert "blocks.0.tokens.up.left" in after.states[SWITCH - 1]


def test_other_parameters_keep_their_state(run):
    policy, task, _, before, after, _ = run
    old, new = before.states[SWITCH], after.states[SWITCH]
    layers = set(task.densified.layers)
    kept = [name for name in old if name.rpartition(".")[2] not in {"left", "right"}]
    assert any(name.rpartition(".")[0] in layers for name in kept)
    for name in kept:
        assert old[name].keys() == new[name].keys()
        assert all(torch.equal(old[name][key], new[name][key]) for key in old[name])
    weights = {f"{name}.weight" for name in layers}
    assert set(new) - set(kept) == (weights if policy == "carry" else set())
    if policy == "carry":
        assert all(new[name]["step"] == SWITCH for name in weights)


def test_every_parameter_is_in_one_group_with_the_rate_of_the_schedule(run):
    _, task, trainer, before, _, _ = run
    groups = trainer.optimizers[0].param_groups
    members = [p for group in groups for p in group["params"]]
    assert {id(p) for p in members} == {id(p) for p in task.model.parameters()}
    assert len(members) == len(list(task.model.parameters()))
    reference = Probe()
    fit(new_task(warmup_steps=2), reference)
    assert [each["decay"] for each in before.rates] == [each["decay"] for each in reference.rates]


def test_weights_load_on_either_side(run):
    _, task, _, _, _, folder = run
    batch = next(iter(Digits(batch_size=96, limit=96).val_dataloader()))
    for step in (SWITCH - 1, SWITCH + 1, SWITCH - 2, STEPS - 1):
        fresh = new_task()
        for each in (fresh, task):
            load_weights(each, folder / f"{step}.ckpt")
            assert bool(structured_layers(each.model)) == (step < SWITCH)
            assert bool(each.densified) == (step >= SWITCH)
        with torch.no_grad():
            assert torch.equal(fresh.eval()(batch["inputs"]), task.eval()(batch["inputs"]))


def test_warm_up_is_for_the_dense_weights_alone():
    probe = Probe()
    fit(new_task(schedule="constant"), Densify(SWITCH, "carry", warmup_steps=4), probe)
    rates = probe.rates[SWITCH:]
    assert [each["decay"] for each in rates] == [0.01] * (STEPS - SWITCH)
    assert [each["decay, densified"] for each in rates] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
    assert "decay, densified" not in probe.rates[SWITCH - 1]


def test_rates_of_factors_end_with_them():
    probe = Probe()
    fit(new_task({"name": "monarch", "nblocks": 4, "init": "mup"}), Densify(SWITCH), probe)
    assert any(" x" in name for name in probe.rates[SWITCH - 1])
    assert set(probe.rates[SWITCH]) == {"decay", "no_decay"}


def test_gradients_are_accumulated_over_one_kind_of_layers():
    before, after = Probe(), Probe()
    task = new_task()
    fit(task, before, Densify(3), after, accumulate_grad_batches=2)
    # 3 batches an epoch are 2 steps: step 3 is done after the second batch of the second epoch.
    assert task.densified.step == 3
    assert before.losses == pytest.approx(after.losses, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": 1.0}, r"densify.at=1.0 must be a fraction"),
        ({"at": 0}, r"densify.at=0 must be a fraction"),
        ({"at": 1}, r"densify.at=1 must be a fraction"),
        ({"at": 20.5}, r"densify.at=20.5 must be a fraction"),
        ({"state": "keep"}, "densify.state='keep' must be 'reset' or 'carry'"),
        ({"at": "0.5"}, r"densify.at='0.5' must be a fraction"),
        ({"at": True}, r"densify.at=True must be a fraction"),
        ({"at": float("nan")}, r"densify.at=nan must be a fraction"),
        ({"warmup_steps": -1}, "densify.warmup_steps=-1 must be a whole number from 0 on"),
        ({"warmup_steps": float("nan")}, "densify.warmup_steps=nan must be a whole number from 0 on"),
        ({"warmup_steps": 1.5}, "densify.warmup_steps=1.5 must be a whole number from 0 on"),
        ({"warmup_steps": "3"}, "densify.warmup_steps='3' must be a whole number from 0 on"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Densify(**options)


def test_step_from_fraction_or_number():
    assert DensifyOptions(0.9).step(1000) == 900
    assert DensifyOptions(0.29).step(100) == 29
    assert DensifyOptions(0.99).step(10) == 9
    assert DensifyOptions(5).step(float("inf")) == 5
    with pytest.raises(ValueError, match="never reached: the training has 5 steps"):
        DensifyOptions(5).step(5)
    with pytest.raises(ValueError, match="a training without end"):
        DensifyOptions(0.5).step(float("inf"))


def test_what_cannot_be_made_dense_is_refused_before_training():
    with pytest.raises(ValueError, match=r"no structured linear layer.*model.linear.name=monarch"):
        fit(new_task({"name": "dense"}), Densify())
    with pytest.raises(TypeError, match=r"needs a module of milkweed.train; got LightningModule"):
        Densify().setup(Trainer(logger=False, enable_checkpointing=False), LightningModule(), "fit")


# ---- runs of the command line

OPTIONS = [
    *("--data.rows", "false", "--model.channel_dim", "32", "--model.token_linear", "null"),
    *("--model.d_model", "16", "--model.depth", "1", "--data.batch_size", "32", "--data.limit", "96"),
    *("--trainer.max_epochs", "4", "--trainer.checkpoint_every_n_steps", "1", "--trainer.densify.at", str(SWITCH)),
    *("--trainer.densify.state", "carry", "--trainer.densify.warmup_steps", "3"),
]


def rows(folder):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(folder / "metrics.csv")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "KeepCheckpoints", partial(KeepCheckpoints, keep=100))
        with pytest.MonkeyPatch.context() as on_screen, io.StringIO() as shown:
            on_screen.setattr(sys, "stdout", shown)
            assert main(["train", "digits-monarch", "--out", str(out), "--name", "a", *OPTIONS]) == 0
            (out / "shown.txt").write_text(shown.getvalue())
    return out


def test_densification_is_announced_and_recorded(whole, tmp_path, capsys):
    dense, structured = (build_model(load_pretrained(whole / "a").config) for _ in range(2))
    layers = densify_(dense)
    before, after = (sum(p.numel() for p in model.parameters()) for model in (structured, dense))
    assert before < after
    line = f"step 7 of 12: 4 structured layers multiplied out, dense from here on; {before:,} -> {after:,} parameters\n"
    assert (whole / "shown.txt").read_text().count(line) == 1
    results = json.loads((whole / "a" / "results.json").read_text())
    assert results["parameters"] == after
    assert results["densified"] == {
        "step": SWITCH,
        "warmup_steps": 3,
        "layers": layers,
        "parameters_before": before,
        "parameters_after": after,
        "saved_model_is_dense": True,
    }
    # A run that is continued behind the switch still knows of it, and says so only once.
    shutil.copytree(whole / "a", tmp_path / "a")
    (tmp_path / "a" / "results.json").unlink()
    assert main(["train", "digits-monarch", "--out", str(tmp_path), "--name", "a", "--resume", "auto"]) == 0
    assert "multiplied out" not in capsys.readouterr().out
    assert json.loads((tmp_path / "a" / "results.json").read_text())["densified"] == results["densified"]


def test_results_say_that_the_best_epoch_is_from_before(tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeepCheckpoints, "_no_worse", lambda *_: False)
        assert main(["train", "digits-monarch", "--out", str(tmp_path), "--name", "a", *OPTIONS]) == 0
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert results["densified"]["saved_model_is_dense"] is False
    assert results["parameters"] == results["densified"]["parameters_before"]
    assert "Best epoch 1 is from before layers became dense" in capsys.readouterr().out
    assert any(isinstance(module, MonarchLinear) for module in load_pretrained(tmp_path / "a").modules())


def test_finished_run_loads_as_a_dense_model(whole):
    model = load_pretrained(whole / "a")
    assert isinstance(model, MlpMixer)
    assert not any(isinstance(module, MonarchLinear) for module in model.modules())
    assert sum(type(module) is nn.Linear for module in model.modules()) == 6
    assert main(["evaluate", str(whole / "a")]) == 0


@pytest.mark.parametrize("step", [SWITCH - 4, SWITCH - 2, SWITCH, SWITCH + 1, SWITCH + 2, STEPS])
def test_resumed_on_either_side_bit_for_bit(whole, step, tmp_path):
    shutil.copytree(whole / "a", tmp_path / "a")
    for path in (tmp_path / "a" / "checkpoints").glob("step-*.ckpt"):
        if int(path.stem[5:]) > step:
            path.unlink()
    stored = torch.load(tmp_path / "a" / "checkpoints" / f"step-{step:09d}.ckpt", weights_only=True)
    assert ("densified" in stored) == (step > SWITCH)
    assert main(["train", "digits-monarch", "--out", str(tmp_path), "--name", "a", "--resume", "auto"]) == 0
    assert rows(tmp_path / "a") == rows(whole / "a")
    expected, found = load_pretrained(whole / "a").state_dict(), load_pretrained(tmp_path / "a").state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    last = f"checkpoints/step-{STEPS:09d}.ckpt"
    one, two = (torch.load(folder / "a" / last, weights_only=True) for folder in (whole, tmp_path))
    one, two = (each["optimizer_states"][0] for each in (one, two))
    assert one["param_groups"] == two["param_groups"]
    for key, state in one["state"].items():
        assert all(torch.equal(state[name], two["state"][key][name]) for name in state)


def test_misspelled_option_is_refused(tmp_path, capsys):
    assert main(["train", "digits-monarch", "--out", str(tmp_path / "out"), "--trainer.densify.when", "0.5"]) == 2
    assert "when" in capsys.readouterr().err
    assert main(["train", "digits", "--out", str(tmp_path / "out"), "--trainer.densify.at", "0.5"]) == 2
    assert "no structured linear layer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
