"""What a run keeps of data of one's own: a raw input is prepared as the data module prepared it."""

import json

import numpy as np
import pytest
import torch
from tests.own_files import own_files

import milkweed as mw
from milkweed.data import Bytes, Images, Recordings, Series, Signals, Tokens
from milkweed.data.labelled_files import find_files
from milkweed.data.preprocessing import read_preprocessing

pytest.importorskip("pandas")
soundfile = pytest.importorskip("soundfile")
Image = pytest.importorskip("PIL.Image")
SHARES = {"val": 0.3, "test": 0.3}


def kept(data, folder):
    """The preprocessing of a data module, written and read again."""
    (folder / "preprocessing.json").write_text(json.dumps(data.preprocessing().as_dict(), allow_nan=False))
    return read_preprocessing(folder)


def read(preprocessing, source, rate=1.0):
    return [sample["inputs"] for _, sample in preprocessing.read(source, rate)]


@pytest.mark.parametrize("options", [{}, {"seconds": 0.005}, {"sample_rate": 4000}, {"sample_rate": 12000}])
def test_recordings(options, tmp_path):
    data = mw.data.WavFolder(str(own_files() / "wavs"), **SHARES, **options)
    found, split = kept(data, tmp_path), data.split("test")
    files = find_files("test", data.root, (".wav",), data.val, data.test).files["test"]
    assert len(files) == len(split) > 2
    for place, file in enumerate(files):
        (inputs,) = read(found, str(file))
        torch.testing.assert_close(inputs, split.inputs[place, : split.lengths[place]], rtol=1e-6, atol=1e-6)
    assert found.class_names == ["no", "yes"]


def test_recordings_of_two_channels_and_arrays(tmp_path):
    random = np.random.RandomState(1)
    stereo = random.randn(70, 2).astype(np.float32) / 10
    soundfile.write(tmp_path / "two.wav", stereo, 8000, subtype="FLOAT")
    found = Recordings(8000, mean=0.1, std=0.2)
    expected = torch.from_numpy((stereo.astype(np.float64).mean(1, keepdims=True) - 0.1) / 0.2).float()
    for source in (tmp_path / "two.wav", stereo, torch.from_numpy(stereo), stereo.tolist()):
        torch.testing.assert_close(read(found, source)[0], expected, rtol=1e-5, atol=1e-6)
    both = Recordings(8000, channels=2)
    torch.testing.assert_close(read(both, tmp_path / "two.wav")[0], torch.from_numpy(stereo))
    torch.testing.assert_close(both.next_steps(stereo[0], 0), torch.from_numpy(stereo[:1]))
    with pytest.raises(ValueError, match=r"two\.wav has 2 channels, and data\.channels=3"):
        read(Recordings(8000, channels=3), tmp_path / "two.wav")


@pytest.mark.parametrize(
    ("options", "rate", "message"),
    [
        ({"sample_rate": 16000}, 1.0, r"two\.wav has 8000 Hz; the model reads 16000 Hz; resample it.*rate to 2"),
        ({"sample_rate": 8000}, 2.0, r"two\.wav has 8000 Hz; the model reads 4000 Hz at rate 2"),
        ({"sample_rate": 11025, "resample": True}, 2.0, "which is no whole number"),
    ],
)
def test_recordings_of_another_rate_are_refused(options, rate, message, tmp_path):
    soundfile.write(tmp_path / "two.wav", np.zeros(70), 8000)
    with pytest.raises(ValueError, match=message):
        read(Recordings(**options), tmp_path / "two.wav", rate)


def test_recordings_at_half_the_rate(tmp_path):
    soundfile.write(tmp_path / "half.wav", np.ones(70), 4000, subtype="FLOAT")
    (inputs,) = read(Recordings(8000, length=100), tmp_path / "half.wav", 2.0)
    assert inputs.shape == (50, 1)
    soundfile.write(tmp_path / "half.wav", np.ones(700), 44100, subtype="FLOAT")
    (inputs,) = read(Recordings(8000, resample=True), tmp_path / "half.wav", 2.0)
    assert inputs.shape == (64, 1)  # ceil(700 * 4000 / 44100)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((3, 70)), r"must be amplitudes \(samples,\) or \(samples, channels\).*\(3, 70\); give several"),
        (np.full(5, np.nan), "holds NaN or infinity, first at step 0"),
        ("none.wav", r"none\.wav is not a file; give a recording"),
        ("none.doc", "is not a file"),
        (["a"], "real numbers"),
    ],
)
def test_what_is_no_recording(source, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        read(Recordings(8000), source)


@pytest.mark.parametrize(
    "options",
    [
        {"grey": True},
        {"grey": False},
        {"grey": True, "steps": "rows"},
        {"grey": False, "steps": "patches", "patch": 3},
        {"grey": True, "size": 4},
    ],
)
def test_images(options, tmp_path):
    data = mw.data.ImageFolder(str(own_files() / "images"), **SHARES, **options)
    found, split = kept(data, tmp_path), data.split("test")
    files = find_files("test", data.root, (".png",), data.val, data.test).files["test"]
    for place, file in enumerate(files):
        (inputs,) = read(found, str(file))
        torch.testing.assert_close(inputs, split.inputs[place], rtol=1e-6, atol=1e-6)
    (every_second,) = read(found, str(files[0]), 2.0)
    assert torch.equal(every_second, read(found, str(files[0]))[0][::2])


def test_images_as_arrays():
    levels = np.random.RandomState(0).randint(0, 256, (5, 6, 4, 3))
    found = Images(3, [6, 4], mean=[1.0, 2.0, 3.0], std=[2.0, 2.0, 4.0])
    expected = torch.from_numpy((levels - [1, 2, 3]) / [2, 2, 4]).float().reshape(5, 24, 3)
    torch.testing.assert_close(torch.stack(read(found, levels)), expected)
    torch.testing.assert_close(read(found, levels[1])[0], expected[1])
    torch.testing.assert_close(found.next_steps(levels[1, 0], 0), expected[1, :4])
    grey = Images(1, [6, 4], steps="rows")
    torch.testing.assert_close(read(grey, levels[0, ..., 0])[0], torch.from_numpy(levels[0, ..., 0]).float())
    torch.testing.assert_close(torch.stack(read(grey, levels[..., 0])), torch.from_numpy(levels[..., 0]).float())
    torch.testing.assert_close(grey.next_steps(levels[0, 0, :, 0], 0), torch.from_numpy(levels[0, :1, :, 0]).float())
    for source, message in (
        (levels[:, :5], r"has 5 × 4 pixels; the model was trained on 6 × 4; resize it"),
        (levels[..., :2], r"must be levels \(height, width, 3\).*got shape \(5, 6, 4, 2\)"),
        (levels * 2, "levels must lie in 0…255"),
    ):
        with pytest.raises(ValueError, match=message):
            read(found, source)
    with pytest.raises(ValueError, match="step by step"):
        Images(3, [6, 4], steps="patches", patch=2).next_steps(levels[0], 0)


def test_files_of_images_in_another_size(tmp_path):
    Image.new("RGB", (9, 7), (10, 20, 30)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png has 7 × 9 pixels; the model was trained on 4 × 4; resize it"):
        read(Images(3, [4, 4]), tmp_path / "a.png")
    (inputs,) = read(Images(3, [4, 4], scale=True), tmp_path / "a.png")
    assert torch.equal(inputs, torch.tensor([10.0, 20, 30]).expand(16, 3))


def test_arrays(tmp_path):
    random = np.random.RandomState(0)
    x, y = random.randn(60, 9, 2).astype(np.float32), np.arange(60) % 3
    split = np.array(["train"] * 40 + ["val"] * 10 + ["test"] * 10)
    for options in ({}, {"standardise": False}, {"lengths": np.arange(60) % 9 + 1}):
        data = mw.data.Arrays(x, y, split=split, **options)
        found = kept(data, tmp_path)
        assert type(found) is Signals
        lengths = data.split("test").lengths.tolist()
        for place, length in enumerate(lengths):
            (inputs,) = read(found, x[50 + place, :length])
            torch.testing.assert_close(inputs, data.split("test").inputs[place, :length], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="has 8 steps; the model was trained on 9"):
        read(kept(mw.data.Arrays(x, y), tmp_path), x[0, :8])
    with pytest.raises(ValueError, match="D=2 numbers per step"):
        read(kept(mw.data.Arrays(x, y), tmp_path), x[..., :1])
    tokens = random.randint(0, 7, (60, 9))
    found = kept(mw.data.Arrays(tokens, y, tokens=True), tmp_path)
    assert isinstance(found, Tokens)
    assert torch.equal(torch.stack(read(found, tokens[:3])), torch.from_numpy(tokens[:3]))
    for source, message in (
        (np.full(9, 7), r"tokens must lie in 0…6, as in training; got 7…7"),
        (np.full(9, 0.5), "must be whole numbers"),
        (tokens[0, :4], "has 4 tokens; the model was trained on 9"),
    ):
        with pytest.raises(ValueError, match=message):
            read(found, source)


def test_rows_of_hugging_face(tmp_path):
    (tmp_path / "rows").mkdir()
    random = np.random.RandomState(0)
    rows = [
        {"values": random.randn(5 + i % 3).round(3).tolist(), "text": f"wörd {i}", "label": i % 2} for i in range(60)
    ]
    (tmp_path / "rows/train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = mw.data.HuggingFace(str(tmp_path / "rows"), "values", "label", val=0.2, test=0.2)
    found, split = kept(data, tmp_path), data.split("train")
    own = [read(found, row["values"])[0] for row in rows]
    for inputs, length in zip(split.inputs, split.lengths, strict=True):
        same = [each for each in own if len(each) == length and torch.allclose(each, inputs[:length], atol=1e-6)]
        assert len(same) == 1
    data = mw.data.HuggingFace(str(tmp_path / "rows"), "text", "label", max_length=6, val=0.2, test=0.2)
    found, split = kept(data, tmp_path), data.split("train")
    assert isinstance(found, Bytes)
    assert bytes(read(found, "wörd 12")[0].tolist()) == "wörd ".encode()
    assert bytes(split.inputs[0].tolist()) == "wörd ".encode()
    (tmp_path / "t.txt").write_text("a\nüb\n")
    assert [bytes(each.tolist()).decode() for each in read(found, tmp_path / "t.txt")] == ["a", "üb"]


def series_table(path, rows=60, freq="h", first="2024-01-01"):
    import pandas

    times = pandas.date_range(first, periods=rows, freq=freq)
    random = np.random.RandomState(3)
    frame = pandas.DataFrame({"date": times, "load": random.randn(rows) + 5, "wind": random.randn(rows)})
    frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("freq", "following"),
    [
        ("h", ["2024-01-03 12:00:00", "2024-01-03 13:00:00"]),
        ("15min", ["2024-01-01 15:00:00", "2024-01-01 15:15:00"]),
        ("MS", ["2029-01-01 00:00:00", "2029-02-01 00:00:00"]),
        ("B", ["2024-03-25 00:00:00", "2024-03-26 00:00:00"]),
    ],
)
def test_series_and_their_time_stamps(freq, following, tmp_path):
    file = series_table(tmp_path / "t.csv", freq=freq)
    data = mw.data.CsvForecast(str(file), targets=["load"], covariates=["wind"], context=8, horizon=2, batch_size=4)
    found = kept(data, tmp_path)
    assert isinstance(found, Series)
    ((name, sample),) = found.read(str(file))
    assert name == str(file)
    # The last window that is asked for is followed by the last two rows; the context of a forecast is the last eight.
    values = np.genfromtxt(file, delimiter=",", skip_header=1, usecols=(1, 2))
    expected = torch.from_numpy((values[-8:] - data.mean) / data.std).float()
    torch.testing.assert_close(sample["inputs"], expected)
    shown = found.describe(torch.zeros(2, 1), sample)["steps"]
    assert [row["time"] for row in shown] == following
    assert shown[0]["load"] == pytest.approx(float(data.mean[0]))
    assert set(shown[0]) == {"time", "load"}
    (inputs,) = read(found, values)
    torch.testing.assert_close(inputs, expected)


def test_times_that_are_numbers(tmp_path):
    rows = "\n".join(f"{step / 10},{step % 7}" for step in range(60))
    (tmp_path / "t.csv").write_text("t,level\n" + rows)
    data = mw.data.CsvForecast(str(tmp_path / "t.csv"), time="t", context=8, horizon=2, batch_size=4)
    found = kept(data, tmp_path)
    assert data.columns == ["level"]
    ((_, sample),) = found.read(str(tmp_path / "t.csv"))
    shown = found.describe(torch.zeros(2, 1), sample)["steps"]
    assert [row["time"] for row in shown] == pytest.approx([6.0, 6.1])
    (tmp_path / "u.csv").write_text((tmp_path / "t.csv").read_text().replace("\n5.0,", "\n4.95,"))
    with pytest.raises(ValueError, match=r"row 51: t=4.95 does not follow 4.9 at the distance"):
        mw.data.CsvForecast(str(tmp_path / "u.csv"), time="t", context=8, horizon=2).setup()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("wind", "wnd"), "'wind'|wnd"),
        (lambda text: "\n".join(text.splitlines()[:6]), "has 5 rows; the model reads 8"),
        (lambda text: text.replace("2024-01-03 10", "2024-01-03 12"), r"row 60: the time .* is not after"),
        (lambda text: text.replace("2024-01-03 11", "2024-01-03 12"), "row 60: the time .* does not follow"),
        (lambda text: text.rsplit(",", 1)[0] + ",\n", "row 60: a number of 'wind' is missing"),
    ],
)
def test_rows_that_cannot_be_continued(change, message, tmp_path):
    file = series_table(tmp_path / "t.csv")
    found = mw.data.CsvForecast(str(file), targets=["load"], covariates=["wind"], context=8, horizon=2).preprocessing()
    file.write_text(change(file.read_text()))
    with pytest.raises(ValueError, match=message):
        list(found.read(str(file)))


def test_rows_at_another_distance(tmp_path):
    data = mw.data.CsvForecast(str(series_table(tmp_path / "t.csv")), context=8, horizon=2, batch_size=4)
    found = data.preprocessing()
    with pytest.raises(ValueError, match="its rows are 15min apart, those of the training were h"):
        list(found.read(str(series_table(tmp_path / "u.csv", freq="15min"))))
    with pytest.raises(ValueError, match=r"must be \(rows, 2\), the columns load, wind; got shape \(8, 3\)"):
        read(found, np.zeros((8, 3)))
    with pytest.raises(ValueError, match="reads its rows at once"):
        found.next_steps(np.zeros(2), 0)
    with pytest.raises(ValueError, match=r"must be a \.csv with the columns load, wind"):
        read(found, "t.npy")


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("Signals", {"mean": [float("nan")]}, "mean must be a finite number"),
        ("Signals", {"mean": []}, "mean must be a finite number"),
        ("Signals", {"std": 0.0}, "std must be above 0; got 0"),
        ("Signals", {"std": -1.0}, "std must be above 0"),
        ("Signals", {"length": 0}, "length must be a whole number from 1 on; got 0"),
        ("Signals", {"class_names": "x"}, "class_names must be a list of names; got 'x'"),
        ("Signals", {"class_names": []}, "class_names must name a class"),
        ("Recordings", {"sample_rate": "x"}, "sample_rate must be a whole number from 1 on; got 'x'"),
        ("Recordings", {"resample": "x"}, "resample must be true or false; got 'x'"),
        ("Images", {"size": [4]}, r"size must be a height and a width in pixels; got \[4\]"),
        ("Images", {"steps": "lines"}, "steps='lines' must be"),
        ("Series", {"std": [1.0, 0.0]}, "std must be above 0"),
        ("Tokens", {"vocabulary": 0}, "vocabulary must be a whole number from 1 on"),
    ],
)
def test_damaged_values_are_named_with_their_file(kind, change, message, tmp_path):
    values = {
        "Signals": {"width": 1, "mean": 0.0, "std": 1.0},
        "Recordings": {"sample_rate": 8000},
        "Images": {"colours": 1, "size": [4, 4]},
        "Series": {"columns": ["a", "b"], "targets": 1, "context": 3, "mean": [0.0, 0.0], "std": [1.0, 1.0]},
        "Tokens": {"vocabulary": 5},
    }[kind] | change
    (tmp_path / "preprocessing.json").write_text(json.dumps({"format": 1, "name": kind, "values": values}))
    with pytest.raises(ValueError, match=rf"preprocessing\.json is damaged: {message}"):
        read_preprocessing(tmp_path)


def test_images_of_sixteen_bits(tmp_path):
    levels = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4369
    Image.fromarray(levels).save(tmp_path / "a.png")
    (inputs,) = read(Images(1, [4, 4]), tmp_path / "a.png")
    assert inputs.flatten().tolist() == [17.0 * step for step in range(16)]
    Image.fromarray(levels.astype(np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=r"a\.tiff is no image that can be read: its levels are floating-point"):
        read(Images(1, [4, 4]), tmp_path / "a.tiff")


def test_times_over_a_change_of_the_clock(tmp_path):
    import pandas

    times = pandas.date_range("2024-03-30", periods=60, freq="h", tz="Europe/Berlin")
    frame = pandas.DataFrame({"date": [each.isoformat() for each in times], "load": np.arange(60.0)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    data = mw.data.CsvForecast(str(tmp_path / "t.csv"), context=8, horizon=2, batch_size=4)
    found = data.preprocessing()
    ((_, sample),) = found.read(str(tmp_path / "t.csv"))
    shown = found.describe(torch.zeros(2, 1), sample)["steps"]
    assert [pandas.Timestamp(row["time"]) for row in shown] == list(
        pandas.date_range(times[-1].tz_convert("UTC"), periods=3, freq="h")[1:]
    )
