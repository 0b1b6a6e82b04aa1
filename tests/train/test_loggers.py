"""Loggers by short name. TensorBoard and Weights & Biases are tested where they are installed."""

import csv
import importlib.util
import json
import struct

import pytest
import yaml

from milkweed.cli import main
from milkweed.train.callbacks import read_rows
from milkweed.train.loggers import make_loggers
from milkweed.train.run_folder import RunFolder

SMALL = [
    *("--model.d_model", "8", "--model.depth", "1", "--model.layer.d_state", "4"),
    *("--data.batch_size", "32", "--data.limit", "96"),
]
METRICS = ("train_accuracy", "train_loss", "val_accuracy", "val_loss", "test_accuracy", "test_loss")


def train(out, logger, *options):
    arguments = ["train", "digits", "--out", str(out), "--name", "a", *SMALL, "--trainer.logger", logger]
    assert main([*arguments, "--trainer.max_epochs", "1"]) == 0
    assert main([*arguments, "--trainer.max_epochs", "2", "--resume", "auto"]) == 0
    return RunFolder(out / "a")


def expected(run):
    """What was measured, by name, one value for each epoch."""
    rows = read_rows(run.metrics)
    test = json.loads(run.results.read_text())["test"]
    found = {name: [row[name] for row in rows] for name in METRICS if not name.startswith("test_")}
    return found | {f"test_{name}": [value] for name, value in test.items()}


def test_csv_goes_on_where_the_run_does_and_has_each_value_once(tmp_path):
    run = train(tmp_path, "csv")
    with (run.path / "logs" / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {name: [float(row[name]) for row in rows if row[name]] for name in METRICS}
    for name, values in expected(run).items():
        assert found[name] == pytest.approx(values, rel=1e-6), name
    options = yaml.safe_load((run.path / "logs" / "csv" / "hparams.yaml").read_text())
    assert options["model.layer.d_state"] == 4
    assert options["trainer.max_epochs"] == 2
    assert run.read_config()["trainer"]["logger"] == "csv"


def test_tensorboard_has_each_value_once_and_the_options(tmp_path):
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    run = train(tmp_path, "[tensorboard]")
    found = EventAccumulator(str(run.path / "logs" / "tensorboard"), purge_orphaned_data=True)
    found.Reload()
    for name, values in expected(run).items():
        assert [event.value for event in found.Scalars(name)] == pytest.approx(values, rel=1e-6), name
    assert not any("hp_metric" in name for name in found.Tags()["scalars"])
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    options = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert options["model.d_model"].number_value == 8
    assert options["model.layer.name"].string_value == "s4d"


def wandb_records(file):
    """The records of an offline run: LevelDB's log, after a head of seven bytes."""
    content, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # no head fits into the rest of a block
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in {1, 4}:  # whole, or the last part
            yield record
            record = b""


def test_wandb_logs_into_the_run_folder_without_an_account(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="pip install wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = train(tmp_path, "wandb")
    assert wandb.run is None
    files = sorted((run.path / "logs" / "wandb").glob("offline-run-*/run-*.wandb"))
    # One for each training, of the same run.
    name = (run.path / "logs" / "wandb-id").read_text().strip()
    assert [file.name for file in files] == [f"run-{name}.wandb"] * 2
    found, options = {each: [] for each in METRICS}, {}
    for file in files:
        for data in wandb_records(file):
            record = wandb_internal_pb2.Record.FromString(data)
            for item in record.history.item:
                key = item.key or ".".join(item.nested_key)
                if key in found:
                    found[key].append(json.loads(item.value_json))
            for item in [*record.config.update, *record.run.config.update]:
                options[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
            if record.run.run_id:
                assert (record.run.display_name, record.run.project) == ("a", "milkweed")
    for each, values in expected(run).items():
        assert found[each][-len(values) :] == pytest.approx(values, rel=1e-6), each
    assert options["model.d_model"] == 8
    assert options["trainer.max_epochs"] == 2


def test_wandb_without_an_account_says_what_to_do(tmp_path, capsys, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(RuntimeError("no key")))
    assert main(["train", "digits", "--out", str(tmp_path), *SMALL, "--trainer.logger", "wandb"]) == 2
    assert "no key; log in by `wandb login`, or set WANDB_MODE=offline" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_before_anything_is_written(name, tmp_path, capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    absent = {"tensorboard", "tensorboardX", "wandb"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda each, *_: None if each in absent else find_spec(each, *_))
    assert main(["train", "digits", "--out", str(tmp_path), *SMALL, "--trainer.logger", f"[csv, {name}]"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"--trainer.logger {name} needs {name}, which is not installed: pip install {name}" in error
    assert list(tmp_path.iterdir()) == []


def test_other_values_stay(tmp_path):
    logger = object()
    assert make_loggers(True, tmp_path, None) is True
    assert make_loggers(None, tmp_path, None) is None
    assert make_loggers([logger], tmp_path, None) == [logger]


def test_a_damaged_log_begins_anew(tmp_path):
    (tmp_path / "logs" / "csv").mkdir(parents=True)
    (tmp_path / "logs" / "csv" / "metrics.csv").write_text("epoch,step,val_loss\n0,4,1.5\n1,9,x")
    logger = make_loggers("csv", tmp_path, 10)
    logger.log_metrics({"val_loss": 0.5}, 14)
    logger.save()
    assert (tmp_path / "logs" / "csv" / "metrics.csv").read_text().splitlines()[1:] == ["14,0.5"]
