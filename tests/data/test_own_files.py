"""Recordings and images of one's own: folders by class, tables, lists, and whatever is wrong with them."""

import csv
import shutil

import numpy as np
import pytest
import torch

import milkweed as mw

Image = pytest.importorskip("PIL.Image")
soundfile = pytest.importorskip("soundfile")


def tone(pitch, samples=400, rate=8000):
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(samples) / rate)


@pytest.fixture
def wavs(tmp_path):
    for place, word in enumerate(("no", "yes")):
        (tmp_path / "wavs" / word).mkdir(parents=True)
        for number in range(30):
            samples = tone(300 + 400 * place, 300 + 5 * number)
            soundfile.write(tmp_path / "wavs" / word / f"{number}.wav", samples, 8000, subtype="FLOAT")
    (tmp_path / "wavs" / "_background_noise_").mkdir()
    return tmp_path / "wavs"


def table(path, rows, header=("file", "label", "split")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def sizes(data):
    return {name: len(data.split(name)) for name in ("train", "val", "test")}


def test_a_folder_for_each_class(wavs):
    data = mw.data.WavFolder(str(wavs), val=0.2, test=0.2)
    assert data.d_output == 2
    assert data.class_names == ("no", "yes")
    assert sum(sizes(data).values()) == 60
    assert data.length == 445
    split = data.split("train")
    valid = torch.arange(data.length) < split.lengths[:, None]
    samples = split.inputs[..., 0][valid].double()
    assert samples.mean().abs() < 1e-6
    assert abs(samples.std(correction=0) - 1) < 1e-6
    assert (split.inputs[..., 0][~valid] == 0).all()


def test_new_files_leave_the_others_in_their_splits(wavs):
    before = mw.data.WavFolder(str(wavs), val=0.2, test=0.2)
    kept = {name: before.split(name).inputs for name in ("val", "test")}
    shutil.copy(wavs / "no/0.wav", wavs / "no/another.wav")
    after = mw.data.WavFolder(str(wavs), val=0.2, test=0.2)
    for name, inputs in kept.items():
        assert len(after.split(name)) - len(inputs) in {0, 1}


def test_folders_for_the_splits(wavs, tmp_path):
    for split in ("train", "test"):
        for word in ("no", "yes"):
            (tmp_path / "both" / split / word).mkdir(parents=True)
            for number in range(20 if split == "train" else 5):
                shutil.copy(wavs / word / f"{number}.wav", tmp_path / "both" / split / word)
    data = mw.data.WavFolder(str(tmp_path / "both"), val=0.25)
    assert sizes(data)["test"] == 10
    assert sizes(data)["train"] + sizes(data)["val"] == 40
    assert sizes(data)["val"] > 0


def test_lists_of_files(wavs, tmp_path):
    (tmp_path / "val.txt").write_text("no/1.wav\nyes/1.wav\n")
    (tmp_path / "test.txt").write_text("no/2.wav\nyes/2.wav\nyes/3.wav\n")
    data = mw.data.WavFolder(str(wavs), val_list=str(tmp_path / "val.txt"), test_list=str(tmp_path / "test.txt"))
    assert sizes(data) == {"train": 55, "val": 2, "test": 3}
    (tmp_path / "val.txt").write_text("no/1.wav\nno/99.wav\n")
    with pytest.raises(ValueError, match=r"val\.txt, line 2: no/99\.wav is none of the 60 files"):
        mw.data.WavFolder(str(wavs), val_list=str(tmp_path / "val.txt")).setup()


def test_a_table_of_files(wavs):
    rows = [(f"{word}/{i}.wav", word, ("train", "val", "test")[i % 3]) for word in ("no", "yes") for i in range(12)]
    data = mw.data.WavFolder(str(table(wavs / "files.csv", rows)))
    assert sizes(data) == {"train": 8, "val": 8, "test": 8}
    # Without the splits of a table they are made as everywhere.
    rows = [(f"{word}/{i}.wav", word) for word in ("no", "yes") for i in range(30)]
    data = mw.data.WavFolder(str(table(wavs / "files.csv", rows, ("file", "label"))), val=0.2, test=0.2)
    assert sizes(data) == sizes(mw.data.WavFolder(str(wavs), val=0.2, test=0.2))


def test_seconds_cut_and_rates_are_resampled(wavs):
    data = mw.data.WavFolder(str(wavs), seconds=0.04, val=0.2, test=0.2)
    assert data.length == 320
    assert data.split("train").lengths.min() < 320
    half = mw.data.WavFolder(str(wavs), sample_rate=4000, val=0.2, test=0.2)
    assert half.length == 223
    # A slow sine is the same at half the rate, up to the edges.
    whole = mw.data.WavFolder(str(wavs), val=0.2, test=0.2)
    fine, coarse = whole.split("train").inputs[0, :300:2, 0], half.split("train").inputs[0, :150, 0]
    inside = slice(20, 120)
    torch.testing.assert_close(fine[inside] * whole.std, coarse[inside] * half.std, rtol=0, atol=0.02)


def test_stereo(wavs):
    for file in wavs.rglob("*.wav"):
        samples, rate = soundfile.read(file)
        soundfile.write(file, np.stack([samples, -0.5 * samples], 1), rate, subtype="FLOAT")
    assert mw.data.WavFolder(str(wavs), val=0.2, test=0.2).split("train").inputs.shape[2] == 1
    assert mw.data.WavFolder(str(wavs), channels=2, val=0.2, test=0.2).split("train").inputs.shape[2] == 2
    with pytest.raises(ValueError, match=r"has 2 channels, and data\.channels=3"):
        mw.data.WavFolder(str(wavs), channels=3).setup()


def _spoil(wavs, what):
    file = wavs / "no" / "7.wav"
    if what == "text":
        file.write_text("this is no sound")
    elif what == "empty":
        soundfile.write(file, np.zeros(0), 8000)
    elif what == "nan":
        soundfile.write(file, np.full(100, np.nan), 8000, subtype="FLOAT")
    elif what == "rate":
        soundfile.write(file, tone(300), 16000)
    elif what == "class":
        (wavs / "rare").mkdir()
        shutil.copy(wavs / "no/1.wav", wavs / "rare/1.wav")
        table(
            wavs / "files.csv",
            [
                ("no/1.wav", "no", "train"),
                ("yes/1.wav", "yes", "train"),
                ("no/2.wav", "no", "val"),
                ("rare/1.wav", "rare", "test"),
            ],
        )
    elif what == "outside":
        table(wavs / "files.csv", [("../../etc/passwd", "no", "train")])
    elif what == "missing":
        table(wavs / "files.csv", [("no/99.wav", "no", "train")])
    elif what == "column":
        table(wavs / "files.csv", [("no/1.wav", "no")], ("file", "klass"))
    elif what == "link":
        file.unlink()
        file.symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("text", r"7\.wav is no recording that can be read"),
        ("empty", r"7\.wav has no samples"),
        ("nan", r"7\.wav holds NaN"),
        ("rate", r"data\.sample_rate=8000"),
        ("class", "the class 'rare' occurs in the test split and not in the training split"),
        ("outside", "leaves that folder"),
        ("missing", r"line 2: there is no file .*99\.wav"),
        ("column", "label"),
        ("link", "leaves that folder"),
    ],
)
def test_what_is_wrong_is_named(wavs, what, message):
    _spoil(wavs, what)
    root = wavs / "files.csv" if (wavs / "files.csv").exists() else wavs
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        mw.data.WavFolder(str(root)).setup()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; name a folder"):
        mw.data.WavFolder(str(tmp_path / "nowhere")).setup()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.wav"):
        mw.data.WavFolder(str(tmp_path / "empty")).setup()


@pytest.fixture
def images(tmp_path):
    random = np.random.RandomState(0)
    for place, name in enumerate(("cat", "dog")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            levels = (random.randint(0, 120, (6, 8, 3)) + 100 * place).astype(np.uint8)
            Image.fromarray(levels).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (48, 3)),
        ({"grey": True}, (48, 1)),
        ({"steps": "rows"}, (6, 24)),
        ({"steps": "patches", "patch": 2}, (12, 12)),
        ({"size": 4}, (16, 3)),
    ],
)
def test_images_as_sequences(images, options, shape):
    data = mw.data.ImageFolder(str(images), val=0.2, test=0.2, **options)
    assert (data.length, data.d_input, data.d_output) == (*shape, 2)
    assert data.split("train").inputs.isfinite().all()


def test_pixels_rows_and_patches_hold_the_same_numbers(images):
    found = {
        steps: mw.data.ImageFolder(str(images), steps=steps, patch=2, val=0.2, test=0.2).split("test").inputs
        for steps in ("pixels", "rows", "patches")
    }
    pixels = found["pixels"].unflatten(1, (6, 8))
    assert torch.equal(found["rows"], pixels.flatten(2))
    assert torch.equal(found["patches"][:, 5], pixels[:, 2:4, 2:4].flatten(1))
    data = mw.data.ImageFolder(str(images), val=0.2, test=0.2)
    levels = data.split("train").inputs.double()
    assert levels.mean((0, 1)).abs().max() < 1e-6
    assert (levels.std((0, 1), correction=0) - 1).abs().max() < 1e-6


def test_images_that_cannot_be_read(images):
    Image.new("RGB", (5, 5)).save(images / "cat" / "3.png")
    with pytest.raises(ValueError, match=r"3\.png has 5 × 5 pixels.*data\.size=5"):
        mw.data.ImageFolder(str(images)).setup()
    (images / "cat" / "3.png").write_text("no image")
    with pytest.raises(ValueError, match=r"3\.png is no image that can be read"):
        mw.data.ImageFolder(str(images)).setup()
    (images / "cat" / "3.png").unlink()
    with pytest.raises(ValueError, match=r"data\.patch=4 must divide the 6 × 8 pixels"):
        mw.data.ImageFolder(str(images), steps="patches").setup()


def test_a_limit_takes_files_of_every_class(wavs):
    whole, some = (mw.data.WavFolder(str(wavs), val=0.3, test=0.3, limit=limit) for limit in (None, 8))
    assert sizes(some) == {"train": 8, "val": 8, "test": 8}
    for name in ("train", "val", "test"):
        assert set(some.split(name).targets.tolist()) == {0, 1}
        lengths = whole.split(name).lengths.tolist()
        assert all(length in lengths for length in some.split(name).lengths.tolist())
