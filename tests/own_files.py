"""Small data as users have them: arrays, a folder of recordings, one of images, tables; made once in a process."""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np

_made = tempfile.TemporaryDirectory(prefix="milkweed-own-")


@functools.cache
def own_files():
    import pandas
    import soundfile
    from PIL import Image

    root, random = Path(_made.name), np.random.RandomState(0)
    labels = np.arange(60) % 2
    np.save(root / "x.npy", random.randn(60, 16) + labels[:, None])
    np.save(root / "y.npy", labels)
    for place, name in enumerate(("no", "yes")):
        (root / "wavs" / name).mkdir(parents=True)
        (root / "images" / name).mkdir(parents=True)
        for number in range(20):
            soundfile.write(root / "wavs" / name / f"{number}.wav", random.randn(50) / 10, 8000)
            levels = random.randint(0, 100, (6, 6)) + 100 * place
            Image.fromarray(levels.astype(np.uint8)).save(root / "images" / name / f"{number}.png")
    times = pandas.date_range("2024-01-01", periods=400, freq="h")
    pandas.DataFrame({"date": times, "load": np.sin(np.arange(400) / 4)}).to_csv(root / "table.csv", index=False)
    (root / "rows").mkdir()
    rows = [{"values": random.randn(5 + i % 3).tolist(), "label": i % 2, "text": f"row {i}"} for i in range(60)]
    (root / "rows/train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def long_table():
    """A table of as many hours as the standard borders of ETT's have."""
    file = own_files() / "hours.csv"
    file.write_text("load\n" + "".join(f"{hour % 24}\n" for hour in range(14400)))
    return file


def options():
    """What the recipes for data of one's own need, by recipe."""
    root = own_files()
    return {
        "arrays": ["--data.inputs", str(root / "x.npy"), "--data.targets", str(root / "y.npy")],
        "wav-folder": ["--data.root", str(root / "wavs"), "--data.val", "0.3", "--data.test", "0.3"],
        "image-folder": ["--data.root", str(root / "images"), "--data.val", "0.3", "--data.test", "0.3"],
        "csv-forecast": ["--data.file", str(root / "table.csv"), "--data.context", "16", "--data.horizon", "4"],
        "hugging-face": ["--data.source", str(root / "rows"), "--data.val", "0.2", "--data.test", "0.2"],
    }
