"""Converted models in what is built on transformers: Trainer, pipelines, sentence-transformers."""

import json

import pytest
import torch
from tests.cli.test_convert import WORDS, save_tokenizer
from torch.utils.data import Dataset

import milkweed as mw
from milkweed.nn import MonarchLinear

transformers = pytest.importorskip("transformers")
logging = transformers.utils.logging
VOCABULARY = 5 + len(WORDS)


@pytest.fixture(autouse=True)
def _quiet():
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity_warning()
    logging.enable_progress_bar()


class Sentences(Dataset):
    """Sequences of tokens, labelled by whether the first one is even."""

    def __init__(self, count=32):
        generator = torch.Generator().manual_seed(3)
        self.tokens = torch.randint(5, VOCABULARY, (count, 8), generator=generator)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.tokens[index, 0] % 2}


def classifier():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    model = transformers.BertForSequenceClassification(config)
    mw.convert_(model, mw.MonarchConfig(2))
    return model.eval()


def trainer(model, folder, **options):
    arguments = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=8,
        num_train_epochs=2,
        learning_rate=0.01,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="epoch",
        eval_strategy="epoch",
        logging_strategy="epoch",
        dataloader_pin_memory=False,
        seed=1,
        **options,
    )
    quiet = [transformers.ProgressCallback, transformers.PrinterCallback]
    found = transformers.Trainer(model, arguments, train_dataset=Sentences(), eval_dataset=Sentences(16))
    for callback in quiet:
        found.remove_callback(callback)
    return found


def same(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("loaded", [False, True])
def test_trained_by_the_trainer(loaded, tmp_path):
    model = classifier()
    if loaded:
        model.save_pretrained(tmp_path / "start")
        model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "start")
    before = model.bert.encoder.layer[0].output.dense.left.clone()
    whole = trainer(model, tmp_path / "runs", load_best_model_at_end=True)
    whole.train()
    model.eval()
    assert not torch.equal(model.bert.encoder.layer[0].output.dense.left, before)
    best = type(model).from_pretrained(whole.state.best_model_checkpoint)
    assert same(model, best)
    checkpoints = sorted((tmp_path / "runs").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert len(checkpoints) == 2
    last = type(model).from_pretrained(checkpoints[-1])
    assert isinstance(last.bert.encoder.layer[0].output.dense, MonarchLinear)

    # Trained on from the first checkpoint it becomes what it became without a break.
    start = classifier() if not loaded else type(model).from_pretrained(tmp_path / "start")
    resumed = trainer(start, tmp_path / "again")
    resumed.train(resume_from_checkpoint=str(checkpoints[0]))
    assert same(start, last)
    resumed.save_model(tmp_path / "saved")
    assert same(type(model).from_pretrained(tmp_path / "saved"), start)


def test_a_pipeline_reads_the_folder(tmp_path):
    model = classifier()
    save_tokenizer(tmp_path)
    model.save_pretrained(tmp_path)
    pipe = transformers.pipeline("text-classification", model=str(tmp_path))
    assert isinstance(pipe.model.bert.encoder.layer[0].output.dense, MonarchLinear)
    tokens = pipe.tokenizer("the red cat runs", return_tensors="pt")
    expected = model(**tokens).logits.softmax(-1).max().item()
    assert pipe("the red cat runs")[0]["score"] == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def encoder(tmp_path):
    transformers_of_sentences = pytest.importorskip("sentence_transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    folder = tmp_path / "dense"
    transformers.BertModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    modules = transformers_of_sentences.sentence_transformer.modules
    model = transformers_of_sentences.SentenceTransformer(
        modules=[modules.Transformer(str(folder)), modules.Pooling(32), modules.Normalize()], device="cpu"
    )
    model.save(str(tmp_path / "sentences"))
    (tmp_path / "sentences/README.md").write_text("---\nlicense: mit\n---\n\nThe dense card.\n")
    return tmp_path / "sentences"


TEXTS = ["the red cat", "a dog runs in the house"]


def test_sentence_transformers_save_and_load(encoder, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(str(encoder), device="cpu")
    mw.convert_(model, mw.convert.default_rules(mw.MonarchConfig(2)))
    expected = model.encode(TEXTS)
    model.save(str(tmp_path / "saved"))
    found = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert isinstance(found[0].auto_model.encoder.layer[0].output.dense, MonarchLinear)
    assert abs(found.encode(TEXTS) - expected).max() < 1e-6
    assert "The dense card" not in (tmp_path / "saved/README.md").read_text()


def test_sentence_transformers_load_what_convert_folder_wrote(encoder, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    mw.convert_folder(encoder, tmp_path / "out", mw.MonarchConfig(2))
    found = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert isinstance(found[0].auto_model.encoder.layer[0].output.dense, MonarchLinear)
    dense = library.SentenceTransformer(str(encoder), device="cpu")
    mw.convert_(dense[0].auto_model, mw.convert.default_rules(mw.MonarchConfig(2)))
    assert abs(found.encode(TEXTS) - dense.encode(TEXTS)).max() < 1e-6
    card = (tmp_path / "out/README.md").read_text()
    assert "The dense card" not in card
    assert "license: mit" in card
    assert "linear layers converted" in card
    assert str(tmp_path) not in card


def test_sentence_transformers_convert_while_loading(encoder):
    library = pytest.importorskip("sentence_transformers")
    options = {"quantization_config": mw.MilkweedConfig(nblocks=2)}
    found = library.SentenceTransformer(str(encoder), device="cpu", model_kwargs=options)
    dense = library.SentenceTransformer(str(encoder), device="cpu")
    mw.convert_(dense[0].auto_model, mw.convert.default_rules(mw.MonarchConfig(2)))
    assert abs(found.encode(TEXTS) - dense.encode(TEXTS)).max() < 1e-6


def test_the_card_names_the_model_on_the_hub(tmp_path):
    model = classifier()
    model.config._name_or_path = "owner/some-bert"
    mw.save_pretrained(model, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "base_model: owner/some-bert" in card
    assert "base_model_relation: quantized" in card
    # A card that is there is the user's.
    (tmp_path / "README.md").write_text("mine")
    mw.save_pretrained(model, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]
