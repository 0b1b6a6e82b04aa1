import json
import sys

import pytest
import torch

from milkweed.benchmarks import Figure, command, main


@pytest.fixture
def offer(monkeypatch):
    """Makes the command know the given cases only."""

    def set_cases(*cases):
        monkeypatch.setattr(command, "all_cases", lambda: list(cases))
        monkeypatch.setattr(command, "all_growths", list)

    return set_cases


def test_table_shows_every_case(toy, offer, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # a narrow terminal breaks cells over lines
    offer(toy(name="good", bar=1e-9), toy(name="hopeless", bar=1e9), toy(name="free"))
    assert main(["--repeats", "2"]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "met" in rows["good"]
    assert "missed" in rows["hopeless"]
    assert "free" in rows


def test_failed_check_gives_an_error_and_no_ratio(toy, offer, capsys, tmp_path):
    offer(toy(name="wrong", ours=2.0), toy(name="right"))
    out = tmp_path / "results.json"
    assert main(["--repeats", "2", "--out", str(out)]) == 1
    captured = capsys.readouterr()
    row = next(line for line in captured.out.splitlines() if line.startswith("wrong"))
    assert "failed" in row
    assert "ms" not in row
    assert "wrong: check failed: ours: output is off by 1.0e+00" in captured.err
    wrong, right = json.loads(out.read_text())["cases"]
    assert wrong["value"] is None
    assert wrong["failure"].startswith("check failed")
    assert right["value"] > 0


def test_json_is_complete(toy, offer, tmp_path):
    offer(toy(bar=1e-9, ideal=2.0))
    out = tmp_path / "new" / "results.json"
    assert main(["--repeats", "3", "--threads", "1", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    environment = content["environment"]
    assert environment["torch"] == torch.__version__
    assert environment["threads"] == 1
    assert environment["cpu"]
    assert {"avx512f", "avx512_bf16"} <= environment["cpu_flags"].keys()
    assert {"date", "git", "python", "milkweed"} <= environment.keys()
    assert content["settings"] == {"repeats": 3, "quick": False, "only": []}
    (case,) = content["cases"]
    assert case["name"] == "toy"
    assert case["size"] == {"n": 3}
    assert case["dtype"] == "float32"
    assert case["meets_bar"] is True
    assert case["fraction_of_ideal"] == pytest.approx(case["value"] / 2)
    assert case["low"] <= case["high"]
    for side in ("ours", "baseline"):
        assert len(case[side]["samples_s"]) == 3
        assert case[side]["low_s"] <= case[side]["median_s"] <= case[side]["high_s"]
        assert case[side]["errors"] == {"output": 0.0}


def test_json_has_no_nan(toy, offer, tmp_path):
    offer(toy(ours=float("nan")))
    out = tmp_path / "results.json"
    assert main(["--out", str(out)]) == 1
    (case,) = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(name))["cases"]
    assert case["ours"]["errors"] == {"output": "nan"}


def test_unknown_case_names_the_nearest(toy, offer, capsys):
    offer(toy(name="kernel-train"))
    assert main(["--only", "kernel-trian"]) == 2
    assert "kernel-train" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["file/results.json", "folder"])
def test_unwritable_out_is_refused_before_measuring(toy, offer, capsys, tmp_path, where):
    calls = []
    offer(toy(calls=calls))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    assert main(["--out", str(tmp_path / where)]) == 2
    assert "nothing was measured" in capsys.readouterr().err
    assert calls == []


def test_list_runs_nothing(toy, offer, capsys):
    calls = []
    offer(toy(name="one", calls=calls, bar=2.0), toy(name="two", figure=Figure.EXTRA_SECONDS, bar=1.0, calls=calls))
    assert main(["--list", "--only", "o"]) == 0
    out = capsys.readouterr().out
    assert ">= 2x" in out
    assert "< 1 s" in out
    assert calls == []


def test_interrupt_shows_what_is_done_and_writes_nothing(toy, offer, capsys, tmp_path, monkeypatch):
    offer(toy(name="first"), toy(name="second"))
    measure = command.measure

    def interrupted(case, **options):
        if case.name == "second":
            raise KeyboardInterrupt
        return measure(case, **options)

    monkeypatch.setattr(command, "measure", interrupted)
    out = tmp_path / "results.json"
    assert main(["--repeats", "1", "--out", str(out)]) == 130
    captured = capsys.readouterr()
    assert "first" in captured.out
    assert "interrupted after 1 of 2" in captured.err
    assert not out.exists()


def test_threads_are_restored(toy, offer):
    offer(toy())
    before = torch.get_num_threads()
    assert main(["--threads", "1", "--repeats", "1"]) == 0
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("arguments", [["--repeats", "0"], ["--threads", "many"], ["--ouput", "x"]])
def test_bad_arguments_exit_with_two(arguments):
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    assert "milkweed bench --only 's4d-*' --quick" in capsys.readouterr().out


def test_missing_rich_names_the_extra(toy, offer, capsys, monkeypatch):
    offer(toy())
    monkeypatch.setitem(sys.modules, "rich", None)
    assert main([]) == 2
    assert 'pip install "milkweed[train]"' in capsys.readouterr().err
