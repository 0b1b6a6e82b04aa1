"""A finished run as a function: its preprocessing travels with it, and its predictions are those of its data module."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import milkweed as mw
from milkweed.cli import main
from milkweed.data import Digits, Mnist, Preprocessing, Prompts, Signals
from milkweed.data.preprocessing import read_preprocessing
from milkweed.models import SequenceModel
from milkweed.tasks import Classification, Regression
from milkweed.train import Predictor

pytest.importorskip("sklearn")
SMALL = [
    *("--model.d_model", "8", "--model.depth", "1", "--model.layer.d_state", "4"),
    *("--data.limit", "96", "--trainer.max_epochs", "1"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    assert main(["train", "digits", "--out", str(out), *SMALL, "--task.calibrate", "true"]) == 0
    return out / "digits"


@pytest.fixture(scope="module")
def images():
    from sklearn.datasets import load_digits

    return load_digits().images


def test_predictions_are_those_of_the_data_module(run, images):
    predictor = mw.load_predictor(run)
    data = Digits()
    data.setup()
    inputs = torch.from_numpy((images[:5] - data.mean) / data.std).float().reshape(5, 64, 1)
    with torch.no_grad():
        logits = mw.load_pretrained(run)(inputs, torch.full((5,), 64))
    expected = (logits.double() / json.loads((run / "calibration.json").read_text())["temperature"]).softmax(-1)
    for form in (images[:5], images[:5].reshape(5, 64), torch.from_numpy(images[:5]), list(images[:5].tolist())):
        found = predictor(form)
        probabilities = torch.tensor([list(each["probabilities"].values()) for each in found]).double()
        torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-6)
        assert [each["class"] for each in found] == [str(int(row.argmax())) for row in expected]
        assert [each["probability"] for each in found] == [max(each["probabilities"].values()) for each in found]


def test_it_needs_no_data(run, images, monkeypatch):
    monkeypatch.setattr(Digits, "load", lambda self: pytest.fail("the data were read"))
    assert len(mw.load_predictor(str(run))(images[0])) == 1


def test_a_run_without_preprocessing_gets_it_from_its_data(run, images, tmp_path, monkeypatch):
    old = tmp_path / "old"
    shutil.copytree(run, old)
    (old / "preprocessing.json").unlink()
    assert mw.load_predictor(old)(images[:3]) == mw.load_predictor(run)(images[:3])

    def gone(self):
        raise FileNotFoundError("the files are gone")

    monkeypatch.setattr(Digits, "load", gone)
    with pytest.raises(ValueError, match=r"has no preprocessing\.json.*the files are gone.*put the data where"):
        mw.load_predictor(old)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "damaged: expected format, name and values"),
        ('{"format": 2, "name": "Signals", "values": {}}', "has format 2, this version reads 1: update"),
        ('{"format": 1, "name": "os.system", "values": {}}', r"name='os\.system' is unknown"),
        ('{"format": 1, "name": "Signals", "values": {"depth": 3}}', "damaged: .*depth"),
        ("no json", "is not JSON"),
    ],
)
def test_damaged_files_are_refused(run, tmp_path, content, message):
    (tmp_path / "preprocessing.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_preprocessing(tmp_path)


def test_wrong_inputs_are_refused_by_name(run, images, tmp_path):
    predictor = mw.load_predictor(run)
    bad = images[:2].copy()
    bad[1, 0, 3] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    for given, error, message in (
        (str(tmp_path / "bad.npy"), ValueError, r"bad\.npy\[1\]: the input holds NaN or infinity, first at step 3"),
        (images[:2, :7], ValueError, r"must be an image of 8 × 8 grey levels.*got shape \(2, 7, 8\)"),
        (16 * images[:1], ValueError, r"grey levels must lie in 0…16.*got 0…"),
        (images[0].astype(complex), TypeError, "must be real numbers; got complex128"),
        (str(tmp_path / "none.npy"), FileNotFoundError, r"none\.npy is not a file"),
        ([images[0], images[0, :3]], ValueError, r"input 1 must be an image"),
    ):
        with pytest.raises(error, match=message):
            predictor(given)
    with pytest.raises(TypeError, match="has the task Classification, which has no steps"):
        predictor(images[0], steps=3)
    for name, value in (("batch_size", 0), ("batch_size", "2"), ("rate", 0), ("rate", "2")):
        with pytest.raises((TypeError, ValueError), match=name):
            predictor(images[0], **{name: value})


def predictor(pooling="mean", task=None, width=2, **options):
    model = SequenceModel(width, 3, 8, 2, {"name": "s4d", "d_state": 8} | options, pooling=pooling)
    task = Classification(3) if task is None else task
    return Predictor(model, task, Signals(width, mean=[0.5] * width, std=[2.0] * width))


def numbers(found):
    rows = [
        each["probabilities"].values()
        if "probabilities" in each
        else each["steps"]
        if "steps" in each
        else each["values"]
        for each in found
    ]
    return [[value["values"] if isinstance(value, dict) else value for value in row] for row in rows]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "last", "none"])
def test_batches_of_any_lengths_give_the_numbers_of_each_alone(pooling, bidirectional):
    function = predictor(pooling, Regression() if pooling == "none" else None, bidirectional=bidirectional)
    inputs = [np.random.RandomState(length).randn(length, 2) for length in (50, 1, 33, 7, 50)]
    together = numbers(function(inputs, batch_size=3))
    for each, expected in zip(inputs, together, strict=True):
        (alone,) = numbers(function(each))
        np.testing.assert_allclose(alone, expected, atol=1e-6, rtol=0)
        assert pooling != "none" or len(alone) == len(each)


@pytest.mark.parametrize("rate", [1.0, 2.0])
@pytest.mark.parametrize("pooling", ["mean", "last", "none"])
def test_a_stream_ends_where_the_whole_does(pooling, rate):
    function = predictor(pooling, Regression() if pooling == "none" else None)
    whole = np.random.RandomState(0).randn(40, 2)
    stream, steps = function.stream(rate=rate), []
    for chunk in (whole[0], whole[1:2], whole[2:30], torch.from_numpy(whole[30:])):
        found = stream(chunk)
        steps += found.get("steps", [])
    (expected,) = function(whole, rate=rate)
    assert stream.steps == 40
    if pooling == "none":
        assert [each["step"] for each in steps] == list(range(40))
        found = {"steps": steps}
    np.testing.assert_allclose(numbers([found]), numbers([expected]), atol=1e-5, rtol=0)


def test_streams_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="depends on the future"):
        predictor(bidirectional=True).stream()
    stream = predictor().stream()
    with pytest.raises(ValueError, match=r"chunk must be \(D=2,\) or \(T, D=2\)"):
        stream(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="NaN"):
        stream([np.nan, 0.0])
    permuted = Predictor(SequenceModel(1, 10, 4, 1), Classification(10), Mnist(permuted=True).preprocessing())
    with pytest.raises(ValueError, match="cannot be read step by step"):
        permuted.stream()(np.zeros(1))


def test_a_stream_of_pixels(run, images):
    function = mw.load_predictor(run)
    stream = function.stream()
    for row in images[3]:
        found = stream(row)
    (expected,) = function(images[3])
    np.testing.assert_allclose(numbers([found]), numbers([expected]), atol=1e-5)


def test_a_rate_reads_signals_as_they_are():
    function = predictor()
    whole = np.random.RandomState(0).randn(30, 2)
    found = function(whole[::2], rate=2)
    scaled = torch.from_numpy((whole[None, ::2] - 0.5) / 2).float()
    expected = function.model(scaled, rate=2.0).softmax(-1)
    np.testing.assert_allclose(numbers(found), expected.detach(), atol=1e-6)
    with pytest.raises(ValueError, match="has 30 steps; the model was trained on 15 at rate=2"):
        list(Signals(2, length=30).read(whole, 2.0))


@pytest.mark.parametrize("permuted", [False, True])
def test_images_are_read_as_mnist_reads_them(permuted, tmp_path):
    from milkweed.data.mnist import generated_images

    data = Mnist(synthetic=True, permuted=permuted)
    images = generated_images()["test_images"]
    stored = json.loads(json.dumps(data.preprocessing().as_dict()))
    (tmp_path / "preprocessing.json").write_text(json.dumps(stored))
    made = read_preprocessing(tmp_path)
    expected = data.split("test").inputs[:4]
    found = torch.stack([sample["inputs"] for _, sample in made.read(images[:4])])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    image = pytest.importorskip("PIL.Image")
    image.fromarray(images[0]).save(tmp_path / "one.png")
    ((name, sample),) = made.read(str(tmp_path / "one.png"))
    assert name.endswith("one.png")
    torch.testing.assert_close(sample["inputs"], expected[0], rtol=0, atol=1e-6)
    (_, half), *_ = made.read(images[:1], 2.0)
    assert torch.equal(half["inputs"], found[0][::2])


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".csv"])
def test_signals_of_files(suffix, tmp_path):
    from safetensors.numpy import save_file

    values, file = np.random.RandomState(0).randn(6, 2), tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(file, values)
    elif suffix == ".npz":
        np.savez(file, a=values, b=values[:3])
    elif suffix == ".safetensors":
        save_file({"a": values, "b": values[:3]}, file)
    else:
        np.savetxt(file, values, delimiter=",", header="left,right", comments="")
    found = dict(Signals(2).read(str(file)))
    names = ["x"] if suffix in {".npy", ".csv"} else ["a", "b"]
    assert len(found) == len(names)
    for sample, expected in zip(found.values(), (values, values[:3]), strict=False):
        np.testing.assert_allclose(sample["inputs"], expected, atol=1e-6)


def test_one_feature_needs_no_axis_of_its_own():
    for shape, count in (((7,), 1), ((7, 1), 1), ((3, 7), 3), ((3, 7, 1), 3)):
        found = list(Signals(1).read(np.ones(shape)))
        assert [sample["inputs"].shape for _, sample in found] == [(7, 1)] * count


class Own(Preprocessing):
    """Words as their letters' numbers."""

    def __init__(self, offset: int, class_names=None) -> None:
        super().__init__(class_names, offset=offset)
        self.offset = offset

    def read(self, source, rate=1.0):
        yield source, {"inputs": torch.tensor([[float(ord(each) - self.offset)] for each in source])}

    def describe(self, outputs, sample):
        return {"mean": float(outputs.mean())}


@pytest.mark.usefixtures("table")
def test_a_preprocessing_of_ones_own(tmp_path):
    mw.register("preprocessing", "letters")(Own)
    content = Own(97, ["x", "y", "z"]).as_dict()
    assert content == {"format": 1, "name": "letters", "values": {"class_names": ["x", "y", "z"], "offset": 97}}
    (tmp_path / "preprocessing.json").write_text(json.dumps(content))
    made = read_preprocessing(tmp_path)
    function = Predictor(SequenceModel(1, 3, 4, 1), Classification(3), made)
    assert [each["input"] for each in function(["abc", "d"])] == ["abc", "d"]
    numbers = Predictor(SequenceModel(1, 3, 4, 1), Regression(), made)
    assert list(numbers(["abc"])[0]) == ["input", "mean"]


class Ahead(Signals):
    """What follows a signal, three steps at distances of 10."""

    forecasts = True

    def read(self, source, rate=1.0):
        for name, sample in super().read(source, rate):
            yield name, sample | {"notes": {"last": 10 * len(sample["inputs"])}}

    def describe(self, outputs, sample):
        last = sample["notes"]["last"]
        return {"steps": [{"time": last + 10 * (k + 1), "y": float(row[0])} for k, row in enumerate(outputs)]}


class Constant(torch.nn.Module):
    """Three steps ahead, whatever the input."""

    def __init__(self):
        super().__init__()
        self.values = torch.nn.Parameter(torch.tensor([[1.0], [2.0], [3.0]]))

    def forward(self, inputs, lengths):
        return self.values.expand(len(inputs), 3, 1)


def test_forecasts_have_their_times_whatever_the_length_of_the_input():
    function = Predictor(Constant(), Regression(), Ahead(1))
    for found, length in zip(function([np.zeros(length) for length in (2, 3, 5)]), (2, 3, 5), strict=True):
        times = [10 * (length + k) for k in (1, 2, 3)]
        assert found["steps"] == [{"time": time, "y": y} for time, y in zip(times, (1.0, 2.0, 3.0), strict=True)]


def test_prompts_of_tokens_use_the_tokenizer_in_the_folder():
    pytest.importorskip("transformers")
    prompts = Prompts()
    prompts.folder = Path(__file__).parents[1] / "data" / "texts" / "tokenizer"
    ((name, sample),) = prompts.read("a man plays")
    assert name == "a man plays"
    assert sample["inputs"].tolist() == prompts.tokenizer("a man plays", add_special_tokens=False)["input_ids"]
    assert prompts.decode(sample["inputs"]) == "a man plays"
