"""Data sets of `datasets` and local tables, one column read and one learned."""

import io
import json

import numpy as np
import pytest
import torch

import milkweed as mw

datasets = pytest.importorskip("datasets")


def rows(count=60):
    random = np.random.RandomState(0)
    return [
        {"values": random.randn(4 + i % 5).round(3).tolist(), "label": ("up", "down")[i % 2], "text": f"word {i} ü"}
        for i in range(count)
    ]


def saved(path, columns):
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns)}).save_to_disk(str(path))
    return str(path)


def test_local_tables_of_lists_with_different_lengths(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows())))
    data = mw.data.HuggingFace(str(tmp_path), "values", "label", val=0.2, test=0.2)
    assert (data.d_input, data.d_output, data.length) == (1, 2, 8)
    assert data.class_names == ("down", "up")
    assert sum(len(data.split(name)) for name in ("train", "val", "test")) == 60
    split = data.split("train")
    valid = torch.arange(8) < split.lengths[:, None]
    assert split.inputs[..., 0][valid].double().mean().abs() < 1e-6
    assert (split.inputs[..., 0][~valid] == 0).all()


def test_splits_of_the_data_are_kept(tmp_path):
    for name, part in (("train", rows(40)), ("validation", rows(10)), ("test", rows(6))):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    data = mw.data.HuggingFace(str(tmp_path), "values", "label")
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [40, 10, 6]


def test_texts_are_bytes(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows())))
    data = mw.data.HuggingFace(str(tmp_path), "text", "label", max_length=6, val=0.2, test=0.2)
    assert (data.d_input, data.length) == (257, 6)
    assert bytes(data.split("train").inputs[0].tolist()).startswith(b"word ")
    batch = next(iter(data.val_dataloader()))
    model = mw.models.SequenceModel(data.d_input, data.d_output, d_model=8, depth=1, encoder="embedding")
    assert model(batch["inputs"], batch["lengths"]).shape == (len(batch["inputs"]), 2)


def test_images_and_recordings_of_datasets(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    soundfile = pytest.importorskip("soundfile")
    random = np.random.RandomState(0)
    pictures = [Image.fromarray(random.randint(0, 255, (3, 4, 3)).astype(np.uint8)) for _ in range(40)]
    labels = [place % 2 for place in range(40)]
    data = mw.data.HuggingFace(saved(tmp_path / "p", {"image": pictures, "label": labels}), "image", "label", val=0.2)
    assert (data.length, data.d_input, data.class_names) == (12, 3, None) or data.class_names == ("0", "1")
    sounds = []
    for place in range(40):
        file = io.BytesIO()
        soundfile.write(file, random.randn(20 + place) / 9, 8000, format="WAV", subtype="FLOAT")
        sounds.append({"bytes": file.getvalue(), "path": None})
    columns = datasets.Dataset.from_dict({"audio": sounds, "label": labels}).cast_column("audio", datasets.Audio())
    datasets.DatasetDict({"train": columns}).save_to_disk(str(tmp_path / "s"))
    data = mw.data.HuggingFace(str(tmp_path / "s"), "audio", "label", val=0.2)
    assert (data.length, data.d_input) == (59, 1)


def test_numbers_to_predict(tmp_path):
    part = [row | {"two": [float(i), -1.0]} for i, row in enumerate(rows())]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, part)))
    data = mw.data.HuggingFace(str(tmp_path), "values", "two", val=0.2, test=0.2)
    assert data.d_output == 2
    assert data.class_names is None
    assert data.split("train").targets.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"inputs": "valuse"}, "valuse"),
        ({"values": []}, {}, "the column 'values' is empty"),
        ({"values": [[1.0], [1.0, 2.0]]}, {}, "row 1 of the train split: the column 'values' holds"),
        ({"values": 3.0}, {}, "expected a text, an image"),
        ({}, {"max_length": 0}, "max_length=0"),
        ({}, {"val": 0.0}, "val=0.0"),
    ],
)
def test_what_is_wrong_is_named(change, options, message, tmp_path):
    part = rows()
    part[0] = part[0] | change
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, part)))
    arguments = {"inputs": "values", "targets": "label"} | options
    with pytest.raises(ValueError, match=message):
        mw.data.HuggingFace(str(tmp_path), **arguments).setup()
