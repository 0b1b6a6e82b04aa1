"""Runs beside each other. The runs here are copies of a trained one with other options and results."""

import csv
import json
import math
import shutil
import statistics

import pytest

from milkweed.cli import main
from milkweed.train import compare, save_comparison
from milkweed.train.comparison import common_name, differing
from milkweed.train.comparison_files import shown_metric, shown_seeds, shown_time, with_prefix
from milkweed.train.finished_run import read_run
from milkweed.train.run_folder import RunFolder, write_json

SMALL = [
    *("--model.d_model", "8", "--model.depth", "1", "--model.layer.d_state", "4"),
    *("--data.batch_size", "32", "--data.limit", "96", "--trainer.max_epochs", "1"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    assert main(["train", "digits", "--out", str(out), *SMALL]) == 0
    return out / "digits"


@pytest.fixture
def make_run(trained, tmp_path):
    """Makes a run with a seed, options by path, e.g. `model.init_args.layer.init`, and results."""

    def make(name, seed=0, options=None, **results):
        folder = RunFolder(tmp_path / name)
        shutil.copytree(trained, folder.path, ignore=shutil.ignore_patterns("checkpoints"))
        config = dict(RunFolder(trained).read_config())
        for path, value in {"seed": seed, **(options or {})}.items():
            place = config
            *parents, last = path.split(".")
            for each in parents:
                place = place[each]
            place[last] = value
        folder.write_config(config)
        content = json.loads(folder.results.read_text()) | {"seed": seed}
        accuracy = results.pop("accuracy", None)
        content["test"] |= {} if accuracy is None else {"accuracy": accuracy}
        write_json(folder.results, content | results)
        return folder.path

    return make


INIT = "model.init_args.layer.init"


def test_runs_of_other_seeds_are_one_row(make_run):
    values = {"legs": [0.9, 0.94, 0.95], "lin": [0.8, 0.81, 0.85]}
    paths = [
        make_run(f"{init}-{seed}", seed, {INIT: init}, accuracy=accuracy, parameters=100 + 10 * (init == "lin"))
        for init in values
        for seed, accuracy in enumerate(values[init])
    ]
    (contest,) = compare(paths).contests
    assert (contest.data, contest.metric, contest.columns) == ("Digits", "accuracy", ["model.layer.init"])
    assert [group.name for group in contest.groups] == ["legs", "lin"]
    for group in contest.groups:
        expected = values[group.name]
        assert group.seeds == [0, 1, 2]
        assert group.options == {"model.layer.init": group.name}
        assert group.metric.mean == pytest.approx(sum(expected) / 3)
        assert group.metric.spread == pytest.approx(statistics.stdev(expected))
    assert [group.cost("parameters").mean for group in contest.groups] == [100, 110]
    assert contest.best is contest.groups[0]


def test_a_default_that_one_run_names_is_no_difference(make_run):
    contests = compare([make_run("a", 0), make_run("b", 1, {INIT: "legs"})]).contests
    assert [group.seeds for group in contests[0].groups] == [[0, 1]]


def test_where_data_lie_and_what_is_logged_is_no_difference(make_run):
    other = {"trainer.logger": True, "trainer.enable_progress_bar": False, "trainer.log_every_n_steps": 7}
    (contest,) = compare([make_run("a", 0), make_run("b", 1, other)]).contests
    assert [len(group.runs) for group in contest.groups] == [2]


def test_a_repeated_seed_is_not_counted_as_another(make_run):
    (contest,) = compare([make_run("a"), make_run("b"), make_run("c", 1)]).contests
    assert [group.seeds for group in contest.groups] == [[0, 1], [0]]
    assert contest.columns == []


def test_a_seed_without_a_finite_metric_is_not_dropped_from_the_mean(make_run):
    path = make_run("b", 1)
    content = json.loads((path / "results.json").read_text())
    content["test"]["accuracy"] = None
    write_json(path / "results.json", content)
    (contest,) = compare([make_run("a"), path]).contests
    assert math.isnan(contest.groups[0].metric.mean)
    assert contest.best is None


def test_other_metrics_and_other_data_are_other_tables(make_run):
    rmse = make_run("b", metric="rmse", test={"rmse": 0.5}, larger_is_better=False)
    found = compare([make_run("a"), rmse])
    assert [(each.data, each.metric) for each in found.contests] == [("Digits", "accuracy"), ("Digits", "rmse")]


def test_the_smallest_is_the_best_where_the_run_says_so(make_run):
    settings = {"metric": "rmse", "larger_is_better": False}
    runs = [make_run(name, options={INIT: name}, test={"rmse": x}, **settings) for name, x in (("lin", 2), ("inv", 1))]
    (contest,) = compare(runs).contests
    assert contest.best.name == "inv"


def test_each_run_in_a_folder_counts_once_in_the_order_of_people(make_run, tmp_path):
    for number in (10, 9):
        make_run(f"run-{number}", options={"task.init_args.lr": number / 100})
    (tmp_path / "notes").mkdir()
    (contest,) = compare([tmp_path, tmp_path / "run-9"]).contests
    assert [group.name for group in contest.groups] == ["run-9", "run-10"]
    assert contest.columns == ["task.lr"]


def damaged(name, change, message):
    return pytest.param(change, message, id=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        damaged("unfinished", lambda run: (run / "results.json").unlink(), "is unfinished: 1 epochs are trained"),
        damaged("foreign", lambda run: (run / "config.yaml").unlink(), "is no run: it has no config.yaml"),
        damaged("cut", lambda run: (run / "results.json").write_text('{"test": {'), "results.json is not JSON"),
        damaged("empty", lambda run: (run / "results.json").write_text("[]"), "holds no test metrics"),
        damaged(
            "text",
            lambda run: (run / "results.json").write_text('{"test": {"accuracy": 1}, "parameters": "many"}'),
            "parameters is 'many', not a number",
        ),
        damaged(
            "metric", lambda run: (run / "results.json").write_text('{"test": {}, "metric": "f1"}'), "test has no f1"
        ),
        damaged("rows", lambda run: (run / "metrics.csv").write_text("a,b\n1"), "metrics.csv is damaged"),
        damaged(
            "config", lambda run: (run / "config.yaml").write_text("seed: 0\nmodel:\n"), "config.yaml is cut off in"
        ),
        damaged(
            "continued",
            lambda run: (run / "metrics.csv").write_text("epoch,seconds\n0,1\n1,1\n"),
            "was continued after its test, from 1 epochs to 2",
        ),
    ],
)
def test_what_is_no_finished_run_is_named_and_left_out(change, message, make_run):
    good, bad = make_run("good"), make_run("bad")
    change(bad)
    found = compare([good, bad])
    assert [group.name for group in found.contests[0].groups] == ["good"]
    assert len(found.left_out) == 1
    assert message in found.left_out[0]
    assert str(bad) in found.left_out[0]


def test_older_runs_get_their_flops_counted(make_run, trained):
    path = make_run("old")
    content = json.loads((path / "results.json").read_text())
    recorded = content["flops"]
    for name in ("flops", "seconds_per_step", "peak_memory_bytes", "larger_is_better", "metric"):
        del content[name]
    write_json(path / "results.json", content)
    run = read_run(path)
    assert run.cost("flops") == recorded > 0
    assert math.isnan(run.cost("peak_memory_bytes"))
    assert (run.metric, run.larger_is_better) == ("accuracy", True)


def test_classes_of_unknown_origin_are_compared_by_what_is_written_and_never_imported(make_run, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    path = make_run("evil", options={"model.class_path": "evil.Model"}, flops=None)
    (contest,) = compare([path, make_run("good")]).contests
    assert [group.options["model"] for group in contest.groups] == ["Model", "SequenceModel"]
    assert math.isnan(contest.groups[0].cost("flops").mean)


def test_options_of_one_class_only_are_no_column():
    s4 = {"layer.name": "s4", "layer.n_ssm": 2, "layer.init": "legs"}
    s4d = {"layer.name": "s4d", "layer.init": "legs"}
    assert differing([s4, s4d]) == ["layer.name"]
    assert differing([s4, s4d, s4 | {"layer.n_ssm": 4}]) == ["layer.name", "layer.n_ssm"]
    assert differing([{"a": 1}, {"a": True}]) == ["a"]
    assert differing([{"a": 1}, {"a": 1.0}]) == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["init=lin,seed=0", "init=lin,seed=1"], "init=lin"),
        (["lin_seed0", "lin_seed12"], "lin"),
        (["legs-10", "legs-11"], "legs"),
        (["digits", "digits-2", "digits-3"], "digits"),
        (["a", "b"], "a"),
        (["one"], "one"),
        (["model2-0", "model2-1"], "model2"),
    ],
)
def test_names_of_seeds_lose_the_seed(names, expected):
    assert common_name(names) == expected


def test_files_hold_the_numbers(make_run, tmp_path):
    make_run("lin-0", 0, {INIT: "lin"}, accuracy=0.5)
    make_run("lin-1", 1, {INIT: "lin"}, accuracy=0.75)
    make_run("a|b", options={INIT: "inv"}, accuracy=0.7)
    (tmp_path / "broken").mkdir()
    found = compare([tmp_path, tmp_path / "broken"])
    for suffix in ("csv", "json", "md", "png", "svg", "pdf"):
        save_comparison(found, tmp_path / "out" / f"table.{suffix}")
    with (tmp_path / "out" / "table.csv").open(newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert float(rows["lin"]["test"]) == 0.625
    assert float(rows["lin"]["spread"]) == pytest.approx(statistics.stdev([0.5, 0.75]))
    assert (rows["lin"]["seeds"], rows["lin"]["model.layer.init"], rows["a|b"]["spread"]) == ("0 1", "lin", "")
    assert rows["lin"]["parameters"] == "362"
    content = json.loads((tmp_path / "out" / "table.json").read_text())
    groups = {group["run"]: group for group in content["contests"][0]["groups"]}
    assert [run["test"]["accuracy"] for run in groups["lin"]["runs"]] == [0.5, 0.75]
    assert content["left_out"] == [f"{tmp_path / 'broken'} is no run: it has no config.yaml"]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| lin | lin | 0, 1 | 62.50 ± 17.68 % | 362 |" in table
    assert "| a\\|b | inv | 0 | **70.00 %** |" in table
    assert (tmp_path / "out" / "table.png").read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in (tmp_path / "out" / "table.svg").read_bytes()
    assert (tmp_path / "out" / "table.pdf").read_bytes()[:4] == b"%PDF"
    with pytest.raises(ValueError, match=r"must end in one of \.csv, \.json"):
        save_comparison(found, tmp_path / "table.xlsx")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0222, "22.2 ms"),
        (1, "1.00 s"),
        (999.9, "17 min"),
        (599, "599 s"),
        (0, "0 s"),
        (99.96, "100 s"),
        (3.2e-5, "32.0 µs"),
    ],
)
def test_times_have_three_digits_and_a_unit(value, expected):
    assert shown_time(value) == expected


def test_counts_have_three_digits_and_a_prefix():
    assert [with_prefix(value, "") for value in (999.9e3, 86176, 12.3456e9)] == ["1.00 M", "86.2 k", "12.3 G"]


def test_seeds_and_metrics_are_written_for_people(make_run):
    assert shown_seeds([2, 0, 1]) == "0–2"
    assert shown_seeds([0, 5]) == "0, 5"
    assert shown_seeds([None]) == "-"
    (contest,) = compare([make_run("a", accuracy=0.5)]).contests
    assert shown_metric("accuracy", contest.groups[0].metric) == "50.00 %"
    assert shown_metric("rmse", contest.groups[0].metric) == "0.5000"
