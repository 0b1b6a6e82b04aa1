"""Folders of transformers, converted in Python as by the command."""

import warnings

import pytest
import torch

import milkweed as mw
from milkweed.cli.convert.flags import as_typed
from milkweed.convert.evaluation.held_out import split
from milkweed.convert.hub.conversion_progress import FolderError, Progress

transformers = pytest.importorskip("transformers")

WORDS = ["red", "green", "blue", "cat", "dog", "runs", "sleeps", "the", "a", "house"]
TEXTS = [" ".join(WORDS[(i * j + j) % 10] for j in range(3 + i % 7)) for i in range(40)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    torch.manual_seed(0)
    sizes = {"vocab_size": 15, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=64, max_position_embeddings=40))
    model.save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    transformers.BertTokenizerFast(str(tmp_path / "bert" / "vocab.txt")).save_pretrained(tmp_path / "bert")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Told(Progress):
    def __init__(self):
        self.steps, self.warnings, self.passes = [], [], 0

    def begin(self, text):
        self.steps.append(text)

    def read(self, batches, total):
        self.passes += 1
        yield from batches

    def warn(self, text):
        self.warnings.append(text)


def outputs(model):
    tokens = torch.arange(5, 15).view(1, 10)
    with torch.no_grad():
        return model(tokens)[0]


@pytest.mark.parametrize("options", [{}, {"sequential": True}, {"permute": True}], ids=str)
def test_a_folder_is_converted_as_its_model_is(folder, options):
    told = Told()
    done = mw.convert_folder("bert", folder / "out", mw.MonarchConfig(4), texts=TEXTS, progress=told, **options)
    model = transformers.BertModel.from_pretrained("bert").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("bert")
    seen, held = split(TEXTS, 0.1)
    assert held
    rows = sorted((tokenizer(text)["input_ids"] for text in seen), key=len, reverse=True)
    batches = [dict(tokenizer.pad({"input_ids": rows[i : i + 32]}, return_tensors="pt")) for i in (0, 32)]
    report = mw.convert_(model, mw.plan_conversion(model, mw.MonarchConfig(4), batches, tokens=None, **options))
    assert torch.equal(outputs(mw.load_pretrained("out")), outputs(model))
    assert [line.output_error for line in done.report.layers] == [line.output_error for line in report.layers]
    assert done.timing.after > 0
    assert repr(done).startswith("cosine of text vectors")
    assert f"{done.timing.before / done.timing.after:.2f}×" in repr(done)
    assert "an embedding" in repr(done)
    assert told.passes >= 1
    assert "writing" in told.steps
    assert {"vocab.txt", "conversion.json"} <= {path.name for path in (folder / "out").iterdir()}
    assert sorted(path.name for path in folder.iterdir()) == ["bert", "out"]


def test_without_a_place_it_only_plans(folder):
    done = mw.convert_folder(folder / "bert", None, {"re:.*query": mw.MonarchConfig(4)})
    assert len(done.report.converted) == 1
    assert done.timing is None
    assert [path.name for path in folder.iterdir()] == ["bert"]


def test_a_budget_and_a_dtype(folder):
    candidates = [None, mw.MonarchConfig(3), mw.MonarchConfig(4)]
    done = mw.convert_folder(
        "bert", "out", texts=TEXTS, parameters=0.6, candidates=candidates, dtype="bfloat16", progress=Told()
    )
    lines = [line for line in done.report.layers if line.reason != "it is a head"]
    assert sum(line.parameters_after for line in lines) <= 0.6 * sum(line.parameters_before for line in lines)
    assert {p.dtype for p in mw.load_pretrained("out").parameters()} == {torch.bfloat16}


def test_training_and_further_files_belong_to_the_result(folder):
    def train(student, teacher, batches):
        assert torch.equal(outputs(teacher), outputs(transformers.BertModel.from_pretrained("bert").eval()))
        assert len(list(batches)) == 2
        with torch.no_grad():
            student.pooler.dense.bias.fill_(7)
        return [1.0, 0.5]

    def also(place, done):
        (place / "extra.txt").write_text(str(done.report.distillation_losses))

    mw.convert_folder("bert", "out", texts=TEXTS, train=train, also_write=also, progress=Told())
    assert (folder / "out" / "extra.txt").read_text() == "(1.0, 0.5)"
    assert (mw.load_pretrained("out").pooler.dense.bias == 7).all()


def test_warnings_are_pythons_where_nobody_listens(folder):
    with pytest.warns(UserWarning, match="tokens are few for layers of up to 64 inputs"):
        mw.convert_folder("bert", None, texts=TEXTS[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mw.convert_folder("bert", None, texts=TEXTS)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("none", "out"), {}, FolderError, "none is not a folder here|none does not exist"),
        (("bert", "bert/x"), {}, FolderError, "out .* overlaps with the model that is read"),
        (("bert", "full"), {}, FolderError, "out='.*full' is not empty; .*, or replace it with overwrite=True"),
        (("bert", "full"), {"overwrite": True}, FolderError, "overwrite=True replaces only what convert_folder wrote"),
        (("bert", "out"), {"device": "gpu0"}, FolderError, "device='gpu0' cannot be used"),
        (("bert", "out"), {"dtype": "float8"}, ValueError, "dtype must be None or one of 'float32'.*; got 'float8'"),
        (("bert", "out"), {"texts": "a text"}, TypeError, "texts must be a list of strings; got str"),
        (("bert", "out"), {"texts": [1]}, TypeError, "texts must be a list of strings"),
        (("bert", "out"), {"max_length": 0}, ValueError, "max_length must be a whole number from 1 on; got 0"),
        (("bert", "out"), {"batch_size": True}, ValueError, "batch_size must be a whole number"),
        (("bert", "out"), {"sequential": True}, ValueError, "sequential=True needs calibration"),
        (("bert", "out"), {"train": print}, ValueError, "train needs texts"),
        (("bert", None), {"train": print, "texts": TEXTS}, ValueError, "out=None only plans"),
        (("bert", "out"), {"train": print, "texts": TEXTS, "dtype": "float16"}, FolderError, "add dtype='float32'"),
        (("bert", "out", mw.MonarchConfig(64)), {}, ValueError, "cannot become monarch"),
        (("bert", "out", {"nowhere": mw.MonarchConfig(4)}), {}, ValueError, "matches none of the 7 linear layers"),
    ],
)
def test_refusals_name_arguments_and_leave_nothing(folder, arguments, options, error, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.txt").write_text("x")
    with pytest.raises(error, match=message) as refusal:
        mw.convert_folder(*arguments, **options)
    assert "--" not in str(refusal.value)
    assert sorted(path.name for path in folder.iterdir()) == ["bert", "full"]


@pytest.mark.parametrize(
    ("said", "typed"),
    [
        ("out='a b' is a file", "--out a b is a file"),
        ("replace it with overwrite=True", "replace it with --overwrite"),
        (
            "nblocks=16 needs in_features >= 256; got in_features=100",
            "--nblocks 16 needs in_features >= 256; got in_fea",
        ),
        (
            "skip it with the rule {'a.b': None}, or leave sequential out",
            "skip it with --keep 'a.b', or leave --sequen",
        ),
        ("skip it with {'a.b': None}", "skip it with --keep 'a.b'"),
        ("parameters=19 is less than", "--parameters 19 is less than"),
        ("max_length=3 is", "--max-length 3 is"),
        ("rank=1; then", "--rank 1; then"),
        ("stands without arguments", "stands without arguments"),
    ],
)
def test_the_command_speaks_of_options(said, typed):
    assert as_typed(said, ["sequential", "permute", "overwrite"]).startswith(typed)


def test_no_option_of_the_command_is_named_below_it():
    import re
    from pathlib import Path

    root = Path(mw.__file__).parent / "convert"
    found = {(path.name, *re.findall(r"(?<![-\w])--[a-z]\w+", path.read_text())) for path in root.rglob("*.py")}
    assert not [each for each in found if len(each) > 1]
