"""`milkweed convert`: the figures that lead its report, metrics of one's own, and progress in a log."""

import dataclasses
import json

import pytest
import torch

import milkweed as mw
from milkweed.cli import main
from milkweed.cli.convert.progress import PATIENCE, Lines
from milkweed.convert.hub.timing import Timing
from milkweed.plots.conversion_page import write_page

transformers = pytest.importorskip("transformers")

WORDS = ["red", "green", "blue", "cat", "dog", "runs", "sleeps", "the", "a", "house"]
TEXTS = [" ".join(WORDS[(i * j + j) % 10] for j in range(3 + i % 7)) + f" {WORDS[i % 10]}" for i in range(60)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    torch.manual_seed(0)
    sizes = {"vocab_size": 15, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=64, max_position_embeddings=40)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    transformers.BertTokenizerFast(str(tmp_path / "bert" / "vocab.txt")).save_pretrained(tmp_path / "bert")
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    (tmp_path / "pairs.csv").write_text("".join(f"{TEXTS[i]},{TEXTS[i + 30]},{i % 5}\n" for i in range(30)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def convert(*arguments):
    assert main(["convert", "bert", "--calibrate", "text.txt", "--nblocks", "4", "--out", "out", *arguments]) == 0


def refused(arguments, capsys):
    assert main(["convert", "bert", "--out", "out", *arguments]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_table_of_pairs_leads_the_report(folder, capsys):
    convert("--metric-data", "pairs.csv")
    shown = capsys.readouterr().out
    values = json.loads((folder / "out" / "conversion.json").read_text())
    figure = values["end_to_end"]["figures"][0]
    assert figure["name"] == "Spearman correlation"
    assert shown.index("bert, dense -> converted") < shown.index("Spearman correlation") < shown.index("query")
    assert f"{figure['before']:.4f} -> {figure['after']:.4f}" in shown
    page = (folder / "out" / "conversion.html").read_text()
    assert f"{figure['before']:.4f} → {figure['after']:.4f}" in page
    assert "<title>bert, converted by milkweed</title>" in page
    assert str(folder) not in page.replace(str(folder / "out"), "")
    for said in ("1 MB = 1,000,000 bytes", f"torch {torch.__version__}", f"milkweed {mw.__version__}", "threads"):
        assert said in page


def test_a_metric_of_ones_own(folder, capsys):
    (folder / "my_metric.py").write_text(
        "import torch\n"
        "def lines(model, held_out):\n    return {'lines': len(held_out.file.read_text().splitlines())}\n"
        "class Norm:\n    @staticmethod\n    def mean(model):\n        return model.pooler.dense.weight.norm()\n"
        "def wrong(a, b, c):\n    return 1\n"
        "number = 3\n"
    )
    convert("--metric", "my_metric:lines", "--metric-data", "pairs.csv")
    assert "30.00 -> 30.00" in capsys.readouterr().out
    assert main(["--import", "my_metric", "convert", "bert", "--out", "norm", "--metric", "my_metric:Norm.mean"]) == 0
    model = transformers.BertModel.from_pretrained("bert")
    assert f"{float(model.pooler.dense.weight.detach().norm()):.4f} ->" in capsys.readouterr().out
    for metric, message in (
        ("my_metric:line", "--metric my_metric:line: my_metric has no function 'line'; it has: "),
        ("my_metric:number", "my_metric has no function 'number'"),
        ("no_such_module:f", "--metric no_such_module:f: there is no such module"),
        ("my_metric:wrong", "--metric my_metric:wrong: metric must be callable as metric(model, held_out)"),
        ("cosin", "metric='cosin' is unknown; did you mean 'cosine'?"),
        ("perplexity", "--metric perplexity needs texts that it can be measured on: give --calibrate FILE.txt"),
        ("spearman", "--metric spearman needs --metric-data, a table"),
    ):
        assert message in refused(["--metric", metric, "--overwrite"], capsys)
    assert "--metric-data none.csv does not exist" in refused(["--metric-data", "none.csv", "--overwrite"], capsys)
    assert "'2' is no share from 0" in refused(["--held-out", "2"], capsys)
    assert "exclude each other" in refused(["--plan", "--metric", "cosine"], capsys)


def test_the_report_of_a_folder_is_shown_again(folder, capsys):
    convert()
    shown = capsys.readouterr().out
    assert main(["inspect", "out"]) == 0
    again = capsys.readouterr().out
    assert again in shown
    assert again.startswith("bert, dense -> converted\nend to end on ")
    assert main(["inspect", "out", "--model.depth", "2"]) == 2
    assert "out is a converted model, which has no options" in " ".join(capsys.readouterr().err.split())


def test_without_texts_it_says_how_to_get_a_figure(folder, capsys):
    assert main(["convert", "bert", "--nblocks", "4", "--out", "out"]) == 0
    captured = capsys.readouterr()
    shown = " ".join(captured.out.split())
    assert "not measured no texts were given; give texts, of which a share is held back, or data" in shown
    assert "[00:00] reading bert\n" in captured.err
    assert "[00:00] writing\n" in captured.err
    assert captured.err.count("reading bert") == 1


def test_a_log_gets_a_line_every_few_seconds(capsys):
    now = 0.0
    steps = Lines(lambda: now)
    steps.begin("calibrating")
    for done in range(1, 101):
        now += 1.0
        steps.count("calibrating", done, 200)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "[00:00] calibrating",
        "[00:05] calibrating: 5 of 200 (2%)",
        "[00:10] calibrating: 10 of 200 (5%)",
    ]
    assert len(lines) == 1 + 100 // PATIENCE
    assert lines[-1] == "[01:40] calibrating: 100 of 200 (50%)"
    for _ in steps.read(range(4), 4):
        now += 4.0
    steps.warn("few texts")
    assert capsys.readouterr().err.splitlines() == [
        "[01:48]   reading texts: 2 of 4 (50%)",
        "[01:56]   reading texts: 4 of 4 (100%)",
        "warning: few texts",
    ]


def test_the_page_of_an_old_report(tmp_path):
    from tests.convert.test_conversion_file import GOLDEN

    done = mw.convert.FolderConversion.load(GOLDEN)
    write_page(done, tmp_path / "page.html", "milkweed convert x")
    page = (tmp_path / "page.html").read_text()
    assert "Distillation" in page
    assert page.count("<tr>") == 1 + len(done.report.layers) + len(done.report.kept)
    losses = tuple(1 / (step + 1) for step in range(10_000))
    long = dataclasses.replace(done, report=dataclasses.replace(done.report, distillation_losses=losses))
    write_page(long, tmp_path / "page.html", "")
    assert len((tmp_path / "page.html").read_text()) < len(page) + 10_000
    assert (
        dataclasses.replace(done, timing=Timing((1,), "cpu", 1.0, 0.01, 2)).headline()[0][1]
        == "1,000 ms -> 10 ms (100.00×)"
    )
