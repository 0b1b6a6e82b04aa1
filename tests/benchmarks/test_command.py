import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import command
from benchmarks.case import Figure, all_cases
from benchmarks.command import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def offer(monkeypatch):
    """Makes the command know the given cases only, in a wide terminal: a narrow one breaks cells over lines."""
    monkeypatch.setenv("COLUMNS", "240")

    def set_cases(*cases):
        monkeypatch.setattr(command, "all_cases", lambda: list(cases))

    return set_cases


def rows(shown):
    return {line.split()[0]: line for line in shown.splitlines() if line.strip()}


def test_one_small_case_from_the_command_to_the_file(tmp_path):
    """The real command, in a process of its own, on a real case."""
    out = tmp_path / "out" / "small.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--only", "s4d-layer-train-small", "--quick", "--json", str(out)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "s4d-layer-train-small" in done.stdout
    document = json.loads(out.read_text())
    assert document["environment"]["ceilings"]["flops"] > 1e8
    assert document["environment"]["ceilings"]["bytes"] > 1e7
    (case,) = document["cases"]
    assert case["value"] > 0
    assert case["value"] == pytest.approx(case["sides"]["peer"]["median_s"] / case["sides"]["ours"]["median_s"])
    assert case["floor_s"] == pytest.approx(
        max(
            case["flops"] / document["environment"]["ceilings"]["flops"],
            case["bytes"] / document["environment"]["ceilings"]["bytes"],
        )
    )
    assert case["fraction_of_floor"] == pytest.approx(case["floor_s"] / case["sides"]["ours"]["median_s"])
    assert {"output", "gradient of u", "gradient of C"} <= case["sides"]["ours"]["errors"].keys()


def test_list_names_every_case_of_both_devices(capsys):
    assert main(["--list"]) == 0
    listed = rows(capsys.readouterr().out)
    assert {case.name for case in all_cases()} <= listed.keys()
    assert main(["--list", "--device", "cuda"]) == 0
    listed = rows(capsys.readouterr().out)
    assert "conv-gated-1024" in listed
    assert "fft-conv-forward" not in listed


def test_table_shows_every_case(toy, offer, capsys):
    offer(
        toy(name="good", bar=1e-9, floor_bar=1e-9, flops=1),
        toy(name="hopeless", bar=1e9),
        toy(name="free"),
        toy(name="import", figure=Figure.EXTRA_SECONDS, bar=1.0),
        toy(name="growing", figure=Figure.GROWTH, bar=100.0),
    )
    assert main(["--repeats", "2"]) == 0
    shown = rows(capsys.readouterr().out)
    assert len(re.findall(r"\bmet\b", shown["good"])) == 2
    assert "missed" in shown["hopeless"]
    assert "free" in shown
    assert re.search(r"[+-]\d+\.\d\d s  .*<= 1 s met", shown["import"])
    assert re.search(r"8 \.\. 16 .* L\^-?\d+\.\d\d +<= 100 met", shown["growing"])


def test_table_needs_no_rich(toy, offer, capsys, monkeypatch):
    offer(toy(name="good", bar=1e-9), toy(name="wrong", ours=2.0))
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["--repeats", "2"]) == 1
    shown = rows(capsys.readouterr().out)
    assert re.search(r"\d+\.\d\dx", shown["good"])
    assert "failed" in shown["wrong"]


def test_failed_check_gives_an_error_and_no_ratio(toy, offer, capsys, tmp_path):
    offer(toy(name="wrong", ours=2.0), toy(name="right"))
    out = tmp_path / "results.json"
    assert main(["--repeats", "2", "--json", str(out)]) == 1
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.startswith("wrong "))
    assert "failed" in row
    assert not re.search(r"\d\.\d\dx", row)
    assert "wrong: ours: wrong: output is off by 1.0e+00" in shown
    wrong, right = json.loads(out.read_text())["cases"]
    assert wrong["value"] is None
    assert wrong["failure"].startswith("ours: wrong")
    assert right["value"] > 0


def test_json_is_complete(toy, offer, tmp_path):
    offer(toy(bar=1e-9, floor_bar=0.5, flops=2), toy(name="growing", figure=Figure.GROWTH))
    out = tmp_path / "new" / "results.json"
    assert main(["--repeats", "3", "--json", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content.keys() == {"format", "environment", "interpreted", "settings", "cases"}
    assert content["environment"]["torch"] == torch.__version__
    assert content["environment"]["ceilings"] == {"flops": 1e9, "bytes": 1e9}
    assert content["settings"] == {"repeats": 3, "quick": False, "only": []}
    case, growing = content["cases"]
    assert case["name"] == "toy"
    assert case["figure"] == "forward"
    assert case["size"] == {"n": 3}
    assert case["dtype"] == "float32"
    assert case["meets_bar"] is True
    assert case["low"] <= case["high"]
    assert case["memory_ratio"] == 4
    assert (case["flops"], case["bytes"], case["floor_s"]) == (2, 8, 8e-9)
    assert case["meets_floor_bar"] is (case["fraction_of_floor"] >= 0.5)
    for side in ("ours", "peer"):
        assert len(case["sides"][side]["samples_s"]) == 3
        assert case["sides"][side]["low_s"] <= case["sides"][side]["median_s"] <= case["sides"][side]["high_s"]
        assert case["sides"][side]["errors"] == {"output": 0.0}
        assert case["sides"][side]["peak_extra_bytes"] > 0
    assert growing["figure"] == "growth"
    assert growing["growth"]["median_s"].keys() == {"8", "16"}
    assert case.keys() == growing.keys() - {"growth"}


def test_json_has_no_nan(toy, offer, tmp_path):
    offer(toy(ours=float("nan")))
    out = tmp_path / "results.json"
    assert main(["--json", str(out)]) == 1
    (case,) = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(name))["cases"]
    assert case["sides"]["ours"]["errors"] == {"output": "nan"}


def test_results_go_to_a_file_only_where_asked(toy, offer, tmp_path, monkeypatch):
    monkeypatch.setattr(command.results, "_FOLDER", tmp_path)
    offer(toy())
    assert main(["--quick"]) == 0
    assert not list(tmp_path.iterdir())
    assert main(["--quick", "--json"]) == 0
    (written,) = tmp_path.iterdir()
    assert re.fullmatch(r"[a-z0-9-]+-threads?\.json", written.name)


def test_unknown_case_names_the_nearest(toy, offer, capsys):
    offer(toy(name="kernel-train"))
    assert main(["--only", "kernel-trian"]) == 2
    assert "kernel-train" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["file/results.json", "folder"])
def test_unwritable_json_is_refused_before_measuring(toy, offer, capsys, tmp_path, where):
    calls = []
    offer(toy(calls=calls))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    assert main(["--json", str(tmp_path / where)]) == 2
    assert "nothing was measured" in capsys.readouterr().err
    assert calls == []


def test_list_runs_nothing(toy, offer, capsys):
    calls = []
    offer(
        toy(name="one", calls=calls, bar=2.0, floor_bar=0.75),
        toy(name="two", figure=Figure.EXTRA_SECONDS, bar=1.0, calls=calls),
    )
    assert main(["--list", "--only", "o"]) == 0
    out = capsys.readouterr().out
    assert ">= 2x" in out
    assert ">= 75%" in out
    assert "<= 1 s" in out
    assert calls == []


def test_what_was_done_before_an_interrupt_is_kept_and_resumed(toy, offer, capsys, tmp_path, monkeypatch):
    calls = []
    offer(toy(name="first", calls=calls), toy(name="second"))
    right = command.run

    def interrupted(case, *arguments):
        if case.name == "second":
            raise KeyboardInterrupt
        return right(case, *arguments)

    monkeypatch.setattr(command, "run", interrupted)
    out = tmp_path / "results.json"
    assert main(["--repeats", "1", "--json", str(out)]) == 130
    captured = capsys.readouterr()
    assert "first" in captured.out
    assert "interrupted after 1 of 2" in captured.err
    (first,) = json.loads(out.read_text())["cases"]
    monkeypatch.setattr(command, "run", right)
    calls.clear()
    assert main(["--repeats", "1", "--json", str(out), "--resume"]) == 0
    kept, second = json.loads(out.read_text())["cases"]
    assert kept == first
    assert second["name"] == "second"
    assert calls == []


def test_a_case_that_ends_the_process_is_not_tried_again(toy, offer, tmp_path, monkeypatch):
    offer(toy(name="first"), toy(name="second"))

    def ended(*_):
        raise SystemExit(139)

    out = tmp_path / "results.json"
    with monkeypatch.context() as patch:
        patch.setattr(command, "run", ended)
        with pytest.raises(SystemExit):
            main(["--json", str(out)])
    assert main(["--quick", "--json", str(out), "--resume"]) == 1
    first, second = json.loads(out.read_text())["cases"]
    assert first["failure"] == "it ended the process"
    assert second["value"] > 0


def test_a_lost_device_is_left_to_a_new_process(toy, offer, tmp_path, monkeypatch):
    offer(toy(name="lost", ours=2.0, device="cuda"), toy(name="next", device="cuda"))
    started = []

    def replace_process(program, arguments):
        started.append((program, arguments))
        raise SystemExit

    monkeypatch.setattr(command, "device_is_lost", lambda device: True)
    monkeypatch.setattr(command.os, "execv", replace_process)
    out = tmp_path / "results.json"
    with pytest.raises(SystemExit):
        main(["--interpret", "--json", str(out)])
    ((program, arguments),) = started
    assert program == sys.executable
    assert arguments[1:-1] == ["-m", "benchmarks", "--interpret", "--json", str(out), "--resume", "--seconds"]
    assert 0 < float(arguments[-1]) < 540
    (lost,) = json.loads(out.read_text())["cases"]
    assert lost["failure"].startswith("ours: wrong")


@pytest.mark.parametrize("arguments", [["--repeats", "0"], ["--threads", "many"], ["--ouput", "x"], ["--dev", "cpu"]])
def test_bad_arguments_exit_with_two(arguments):
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2


def test_what_the_time_does_not_suffice_for_is_skipped(toy, offer, capsys, tmp_path):
    calls = []
    offer(toy(name="first", calls=calls), toy(name="second", calls=calls))
    out = tmp_path / "none.json"
    assert main(["--seconds", "0", "--json", str(out)]) == 0
    assert calls == []
    assert capsys.readouterr().out.count("the 0 s were over") == 2
    assert all(record["skipped"] and record["value"] is None for record in json.loads(out.read_text())["cases"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no results of this command"),
        ('{"cases": [', "holds no results of this command"),
        ("[]", "holds no results of this command"),
        ('{"format": 1, "environment": {}, "cases": []}', "holds no results of this command"),
        ('{"cases": [{}], "format": 2, "interpreted": false, "environment": {"machine": "A"}}', "holds no results"),
        ('{"cases": [{"figure": "growth"}], "format": 2, "interpreted": false, "environment": {}}', "holds no results"),
        ('{"cases": [], "format": 2, "interpreted": false, "environment": {"machine": "A"}}', "in another way"),
        ('{"cases": [], "format": 2, "interpreted": true, "environment": {"machine": "A"}}', "in another way"),
    ],
)
def test_only_a_file_of_its_own_is_resumed(toy, offer, capsys, tmp_path, content, message):
    calls = []
    offer(toy(calls=calls))
    out = tmp_path / "old.json"
    out.write_text(content)
    assert main(["--json", str(out), "--resume"]) == 2
    assert message in capsys.readouterr().err
    assert out.read_text() == content
    assert calls == []


def test_the_interpreter_is_not_for_cases_of_the_cpu(capsys):
    assert main(["--interpret", "--device", "cpu"]) == 2
    assert "--device cuda" in capsys.readouterr().err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    assert "python -m benchmarks --only 's4d-*' --quick" in shown
    assert "python -m benchmarks --device cuda" in shown


def test_the_library_does_not_know_its_benchmarks():
    importing = re.compile(r"^\s*(?:from|import) (?:milkweed\.)?benchmarks\b", re.MULTILINE)
    assert importing.search("from benchmarks.case import Case")
    files = list((ROOT / "src").rglob("*.py"))
    assert len(files) > 100
    assert not [file for file in files if importing.search(file.read_text())]
