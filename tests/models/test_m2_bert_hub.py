"""M2-BERT at home among transformers: folders that its own tools write and read, wherever milkweed is imported."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import milkweed as mw
from milkweed.convert.checkpoints.m2_folder import save_m2_folder

transformers = pytest.importorskip("transformers")

from milkweed.models.hf import m2_bert  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden" / "m2_bert_tiny.safetensors"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green", "blue", "cat", "dog", "runs", "sleeps"]
HEADS = ("MaskedLM", "QuestionAnswering", "SequenceClassification", "TextEncoding", "TokenClassification")
AUTO = {"M2BertModel": "AutoModel"} | {f"M2BertFor{head}": f"AutoModelFor{head}" for head in HEADS}
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
    "monarch_mlp_nblocks": 2,
}
TEXTS = ["red cat runs", "blue dog sleeps", "green cat", "dog runs red red blue"]


def make(name, **options):
    torch.manual_seed(0)
    return getattr(m2_bert, name)(m2_bert.M2BertConfig(**(SIZES | options))).eval()


def batch(lengths=(20, 7), seed=1):
    tokens = torch.randint(0, 40, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros_like(tokens)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    return {"input_ids": tokens, "attention_mask": mask}


def tokenizer(folder):
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    found = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    found.save_pretrained(folder)
    return found


def error(a, b, inputs=None):
    inputs = inputs or batch()
    with torch.no_grad():
        pairs = zip(a(**inputs).to_tuple(), b(**inputs).to_tuple(), strict=True)
        return max(float((x - y).abs().max()) for x, y in pairs if isinstance(x, torch.Tensor))


@pytest.mark.parametrize(("name", "auto"), AUTO.items())
def test_every_class_goes_through_a_folder_and_back(tmp_path, name, auto):
    model = make(name, hidden_dropout_prob=0.0)
    model.save_pretrained(tmp_path, max_shard_size="5kB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    kind = getattr(transformers, auto)
    for options in ({}, {"device_map": "cpu"}, {"device_map": "auto"}):
        loaded, report = kind.from_pretrained(tmp_path, output_loading_info=True, **options)
        assert type(loaded) is type(model)
        assert not any(report[each] for each in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert error(loaded, model) == 0.0
    assert error(mw.load_pretrained(tmp_path), model) == 0.0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "m2_bert"
    assert config["architectures"] == [name]
    assert "auto_map" not in config
    mw.save_pretrained(model, tmp_path / "again")
    assert error(kind.from_pretrained(tmp_path / "again"), model) == 0.0
    half = kind.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert error(half.float(), model) < 0.1


@pytest.mark.parametrize("head", HEADS)
def test_between_the_encoder_and_heads(tmp_path, head):
    model = make(f"M2BertFor{head}")
    model.save_pretrained(tmp_path / "head")
    base = transformers.AutoModel.from_pretrained(tmp_path / "head")
    assert type(base) is m2_bert.M2BertModel
    assert error(base, model.bert) == 0.0
    base.save_pretrained(tmp_path / "base")
    again = getattr(transformers, f"AutoModelFor{head}").from_pretrained(tmp_path / "base")
    assert error(again.bert, model.bert) == 0.0


def test_new_heads_have_the_losses_of_transformers_own(tmp_path):
    inputs = batch()
    model = make("M2BertForTokenClassification", num_labels=3, hidden_dropout_prob=0.0)
    labels = torch.randint(0, 3, (2, 20)).masked_fill(inputs["attention_mask"] == 0, -100)
    out = model(**inputs, labels=labels)
    log = out.logits.double().log_softmax(-1)
    expected = -log[labels >= 0].gather(1, labels[labels >= 0][:, None]).mean()
    torch.testing.assert_close(out.loss.double(), expected)
    answers = make("M2BertForQuestionAnswering", hidden_dropout_prob=0.0)
    out = answers(**inputs, start_positions=torch.tensor([3, 99]), end_positions=torch.tensor([[5], [6]]))
    starts, ends = (each.double().log_softmax(-1) for each in (out.start_logits, out.end_logits))
    # A place behind the text counts for nothing.
    expected = -(starts[0, 3] + (ends[0, 5] + ends[1, 6]) / 2) / 2
    torch.testing.assert_close(out.loss.double(), expected)
    assert answers(**inputs).loss is None
    out.loss.backward()
    assert answers.qa_outputs.weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match="give both start_positions and end_positions"):
        answers(**inputs, start_positions=torch.tensor([3, 4]))
    with pytest.raises(ValueError, match=r"positions must be integers of shape \(2,\)"):
        answers(**inputs, start_positions=torch.tensor([3]), end_positions=torch.tensor([3]))


def test_pipelines(tmp_path):
    for name, task in (
        ("M2BertForMaskedLM", "fill-mask"),
        ("M2BertForSequenceClassification", "text-classification"),
        ("M2BertForTokenClassification", "token-classification"),
        ("M2BertModel", "feature-extraction"),
    ):
        model = make(name, vocab_size=len(WORDS))
        folder = tmp_path / task
        model.save_pretrained(folder)
        encode = tokenizer(folder)
        text = "red [MASK] dog" if task == "fill-mask" else "red dog"
        found = transformers.pipeline(task, model=str(folder))(text)
        with torch.no_grad():
            expected = model(**encode(text, return_tensors="pt"))[0]
        if task == "fill-mask":
            assert found[0]["score"] == pytest.approx(float(expected[0, 2].softmax(-1).max()), abs=1e-6)
        elif task == "text-classification":
            assert found[0]["score"] == pytest.approx(float(expected[0].softmax(-1).max()), abs=1e-6)
        elif task == "token-classification":
            assert [each["score"] for each in found] == pytest.approx(
                expected[0, 1:-1].softmax(-1).amax(-1).tolist(), abs=1e-6
            )
        else:
            torch.testing.assert_close(torch.tensor(found), expected, atol=1e-6, rtol=0)
        assert f"pipeline_tag: {task}" in (folder / "README.md").read_text()


def test_a_trainer_goes_on_where_it_stopped(tmp_path):
    pytest.importorskip("accelerate")
    rows = batch((20, 7, 12, 3, 9, 20, 5, 8))
    data = [{key: value[row] for key, value in rows.items()} | {"labels": torch.tensor(row % 2)} for row in range(8)]

    def train(out, steps, **options):
        torch.manual_seed(0)
        arguments = transformers.TrainingArguments(
            out,
            max_steps=4,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            save_steps=2,
            **options,
        )
        model = make("M2BertForSequenceClassification", hidden_dropout_prob=0.0)
        trainer = transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data)
        trainer.train(resume_from_checkpoint=steps)
        return trainer

    whole = train(tmp_path / "whole", None, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True)
    resumed = train(tmp_path / "resumed", str(tmp_path / "whole" / "checkpoint-2"))
    last = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole" / "checkpoint-4")
    assert error(last, resumed.model.eval()) < 1e-6
    best = transformers.AutoModelForSequenceClassification.from_pretrained(whole.state.best_model_checkpoint)
    assert error(best, whole.model.eval()) == 0.0
    whole.save_model(tmp_path / "saved")
    assert error(mw.load_pretrained(tmp_path / "saved"), whole.model) == 0.0


def test_a_sentence_encoder(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    from milkweed.models.hf.sentence_transformer import save_sentence_transformer

    model = make("M2BertForTextEncoding", vocab_size=len(WORDS), pooling="mean")
    (tmp_path / "tokenizer").mkdir()
    encode = tokenizer(tmp_path / "tokenizer")
    save_sentence_transformer(model, tmp_path / "encoder", encode)
    inputs = encode(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).sentence_embedding
    loaded = library.SentenceTransformer(str(tmp_path / "encoder"), device="cpu")
    assert (loaded.encode(TEXTS, convert_to_tensor=True) - expected).abs().max() < 1e-6
    loaded.save(str(tmp_path / "again"))
    again = library.SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert (again.encode(TEXTS, convert_to_tensor=True) - expected).abs().max() < 1e-6
    assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())


def test_the_card_is_written_once_and_says_how_to_load(tmp_path):
    model = make("M2BertForMaskedLM", padding="legacy")
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    for said in (
        "import milkweed",
        "AutoModelForMaskedLM",
        "pad every text to 24 tokens",
        "library_name: transformers",
    ):
        assert said in card
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other" / "README.md").exists()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", AUTO)
def test_export_with_any_number_of_texts_and_tokens(name):
    model = make(name)
    dims = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens", max=24)}
    program = torch.export.export(model, (), batch(), dynamic_shapes=dict.fromkeys(batch(), dims))
    for lengths in ((13, 5, 2), (24, 1)):
        inputs = batch(lengths, seed=2)
        # The program sums in another order than the model, with float32's digits too.
        assert error(lambda **given: program.module()(**given), copy.deepcopy(model).double(), inputs) < 1e-4


def test_its_folders_are_converted_like_others(tmp_path):
    model = make("M2BertForMaskedLM", vocab_size=len(WORDS), hidden_size=32, intermediate_size=64)
    model.save_pretrained(tmp_path / "dense")
    tokenizer(tmp_path / "dense")
    done = mw.convert_folder(
        tmp_path / "dense", tmp_path / "out", mw.MonarchConfig(4), metric="agreement", metric_data=TEXTS
    )
    assert done.end_to_end.figures[0].name == "same guess of hidden tokens"
    assert done.report.converted
    converted = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    inputs = batch((9, 4))
    inputs["input_ids"] %= len(WORDS)
    assert error(converted, mw.load_pretrained(tmp_path / "out"), inputs) == 0.0
    assert error(converted, model, inputs) > 1e-5
    mw.convert_(model, mw.MonarchConfig(4))
    assert error(converted, model, inputs) < 1e-6


class TestPublishedFiles:
    @pytest.fixture
    def published(self, tmp_path):
        stored = load_file(GOLDEN)
        (tmp_path / "published").mkdir()
        save_file(
            {key: value for key, value in stored.items() if not key.startswith("__")},
            tmp_path / "published" / "model.safetensors",
        )
        return tmp_path / "published", stored

    def test_as_they_are(self, published, tmp_path):
        source, stored = published
        tokenizer(source)
        assert save_m2_folder(source, tmp_path / "out") == tmp_path / "out"
        loaded = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
        with torch.no_grad():
            assert (loaded(stored["__input_ids"]).logits - stored["__logits"]).abs().max() < 1e-4
        assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("red dog") == ["red", "dog"]
        longer = save_m2_folder(source, tmp_path / "longer", length=48)
        loaded = transformers.AutoModel.from_pretrained(longer)
        assert loaded.config.max_position_embeddings == 48
        with torch.no_grad():
            hidden = loaded(stored["__input_ids"]).last_hidden_state
        assert (hidden - stored["__hidden"]).abs().max() < 1e-4

    def test_as_sentence_encoders(self, published, tmp_path):
        library = pytest.importorskip("sentence_transformers")
        source, _ = published
        encode = tokenizer(source)
        out = save_m2_folder(source, tmp_path / "out", padding="masked", pooling="cls", tokenizer=encode)
        loaded = library.SentenceTransformer(str(out), device="cpu")
        plain = transformers.AutoModel.from_pretrained(out)
        with torch.no_grad():
            expected = plain(**encode(TEXTS, padding=True, return_tensors="pt")).last_hidden_state[:, 0]
        assert (loaded.encode(TEXTS, convert_to_tensor=True) - expected).abs().max() < 1e-6

    @pytest.mark.parametrize(
        ("options", "kind", "message"),
        [
            ({"pooling": "max"}, ValueError, "pooling='max' is unknown"),
            ({"pooling": "mean"}, ValueError, "pooling needs padding='masked'"),
            ({"padding": "none"}, ValueError, "padding='none' is unknown"),
            ({"length": 1}, ValueError, "length must be at least the model's"),
            ({"out": "."}, FileExistsError, "is not empty; choose a new folder"),
        ],
    )
    def test_refusals(self, published, tmp_path, options, kind, message, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(kind, match=message):
            save_m2_folder(published[0], **({"out": "new"} | options))
        assert not (tmp_path / "new").exists()


LOAD = """
import sys
{imports}
from transformers import AutoConfig
assert "milkweed.models.hf.m2_bert" not in sys.modules  # not before a model is asked for
from transformers import AutoModelForMaskedLM
model = AutoModelForMaskedLM.from_pretrained({folder!r})
print(type(model).__module__)
"""


def load(imports, folder):
    make("M2BertForMaskedLM").save_pretrained(folder)
    code = LOAD.format(imports=imports, folder=str(folder))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("imports", ["import milkweed, transformers", "import transformers, milkweed"])
def test_importing_milkweed_is_enough(tmp_path, imports):
    done = load(imports, tmp_path)
    assert done.stdout.startswith("milkweed.models.hf.m2_bert"), done.stderr


def test_without_milkweed_transformers_stops(tmp_path):
    done = load("import transformers", tmp_path)
    assert done.returncode == 1
    assert "model type `m2_bert` but Transformers does not recognize this architecture" in done.stderr
