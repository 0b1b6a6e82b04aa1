"""conversion.json: what is written is read again, from every version."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from torch import nn

import milkweed as mw
from milkweed.convert.hub.folder_conversion import FORMAT, environment, file_name, model_bytes, stored_bytes
from milkweed.convert.hub.timing import Timing

GOLDEN = Path(__file__).parents[1] / "golden" / "conversion_format_1.json"


def conversion():
    model = nn.ModuleDict({"tokens": nn.Embedding(100, 256), "out": nn.Linear(256, 256)})
    model.forward = lambda tokens: model["out"](model["tokens"](tokens))
    report = mw.convert_(model, {"out": mw.MonarchConfig(nblocks=4)})
    figures = (
        mw.convert.Figure("perplexity", 24.0, 20.0, "lower", detail="100 tokens"),
        mw.convert.Figure("cosine", 0.9, None, "higher", 0.5),
    )
    end = mw.convert.EndToEnd(figures, "dev.txt, 10 texts", 0)
    report = dataclasses.replace(report, notes=("a note",), distillation_losses=(1.0, 0.5), reordered=(("a", "b"),))
    timing = Timing((8, 128), "cpu", 0.3451, 0.209, 7)
    return mw.convert.FolderConversion(
        report, timing, end, mw.convert.Size(90_900_000, 64_300_000), "encoder", environment()
    )


def test_it_is_read_as_it_was_written(tmp_path):
    done = conversion()
    done.save(tmp_path / "conversion.json")
    for path in (tmp_path, tmp_path / "conversion.json", str(tmp_path)):
        assert mw.convert.FolderConversion.load(path) == done
    values = json.loads((tmp_path / "conversion.json").read_text())
    assert next(iter(values)) == "format"
    assert values["format"] == FORMAT
    assert values["milkweed"] == mw.__version__
    assert values["environment"]["versions"]["torch"]
    assert values["environment"]["machine"]["threads"] >= 1
    assert values["units"]["seconds_*"] == "s"


def test_the_figures_come_first_and_in_words():
    lines = repr(conversion()).splitlines()
    assert lines[0] == "perplexity       20.00 -> 24.00 (+20.0%)  [100 tokens]"
    assert lines[1] == "cosine           0.9000 (lowest 0.5000)"
    assert lines[2].startswith("speed            345 ms -> 209 ms (1.65×)  [inputs 8 × 128 on cpu, ")
    assert lines[3].startswith("size of weights  90.9 MB -> 64.3 MB (-29%)")
    assert max(map(len, lines)) <= 100
    assert repr(mw.convert.FolderConversion(conversion().report)).startswith("layers")


def test_numbers_that_are_not_finite(tmp_path):
    done = conversion()
    broken = dataclasses.replace(done.end_to_end.figures[0], after=math.inf)
    done = dataclasses.replace(done, end_to_end=mw.convert.EndToEnd((broken,)))
    done.save(tmp_path / "c.json")
    json.loads((tmp_path / "c.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert mw.convert.FolderConversion.load(tmp_path / "c.json") == done
    assert "20.00 -> inf (not finite)" in repr(done)


def test_files_without_a_number_are_the_first_format():
    done = mw.convert.FolderConversion.load(GOLDEN)
    assert (done.report.model_parameters, done.report.model_parameters_after) == (11488, 6880)
    assert done.report.layers[0].name == "encoder.layer.0.attention.self.query"
    assert done.report.layers[0].layer == {"name": "monarch", "nblocks": 4}
    assert done.report.reordered == (("encoder.layer.0.intermediate.dense", "encoder.layer.0.output.dense"),)
    assert done.report.distillation_losses == (1.0, 0.5)
    assert done.timing.shape == (8, 40)
    assert done.end_to_end is done.size is done.environment is None
    assert repr(done).startswith("speed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": FORMAT + 1}, f"format {FORMAT + 1}, written by milkweed .*; this version reads up to {FORMAT}"),
        ({"format": "x"}, "install a later one"),
        ({"layers": [{}]}, "is damaged"),
        ({"timing": []}, "is damaged"),
        ({"end_to_end": {}}, "is damaged"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, change, message):
    conversion().save(tmp_path / "c.json")
    values = json.loads((tmp_path / "c.json").read_text()) | change
    (tmp_path / "c.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        mw.convert.FolderConversion.load(tmp_path / "c.json")
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(ValueError, match="is no report of a conversion"):
        mw.convert.FolderConversion.load(tmp_path / "c.json")
    with pytest.raises(FileNotFoundError):
        mw.convert.FolderConversion.load(tmp_path)


def test_the_name_is_the_last_folder_and_a_hubs_name_stays(tmp_path, monkeypatch):
    (tmp_path / "encoder").mkdir()
    assert file_name(str(tmp_path / "encoder")) == file_name(f"{tmp_path}/encoder/") == "encoder"
    assert file_name("someone/model") == "someone/model"
    monkeypatch.chdir(tmp_path / "encoder")
    assert file_name(".") == "encoder"


def test_tied_weights_count_once():
    model = nn.ModuleDict({"tokens": nn.Embedding(100, 8), "out": nn.Linear(8, 100, bias=False)})
    model["out"].weight = model["tokens"].weight
    assert model_bytes(model) == 4 * 800
    assert stored_bytes({"a": model["out"].weight.half(), "b": model["out"].weight.to("meta")}) == 6 * 800
