"""Figures of the whole model, dense and converted, against what a plain computation gives."""

import json
import math
import random

import pytest
import torch
from scipy.stats import spearmanr

import milkweed as mw
from milkweed.convert.evaluation.comparisons import OutputError
from milkweed.convert.evaluation.held_out import split
from milkweed.convert.evaluation.outputs import Asked, ask
from milkweed.convert.evaluation.scores import spearman
from milkweed.convert.evaluation.sentence_pooling import pooling_of
from milkweed.convert.hub.conversion_progress import FolderError, Progress

transformers = pytest.importorskip("transformers")

WORDS = ["red", "green", "blue", "cat", "dog", "runs", "sleeps", "the", "a", "house"]
TEXTS = [" ".join(WORDS[(i * j + j) % 10] for j in range(3 + i % 7)) + f" {WORDS[i % 10]}" for i in range(60)]
SIZES = {"vocab_size": 15, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT = SIZES | {"intermediate_size": 64, "max_position_embeddings": 40, "initializer_range": 0.5}
RULES = mw.MonarchConfig(4, rank=1)


class Silent(Progress):
    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


def save(path, model):
    model.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    transformers.BertTokenizerFast(str(path / "vocab.txt")).save_pretrained(path)
    return path


def bert(path, kind=transformers.BertModel, **options):
    torch.manual_seed(0)
    return save(path, kind(transformers.BertConfig(**BERT, **options)))


def gpt2(path):
    torch.manual_seed(0)
    options = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 40, "initializer_range": 0.3}
    options |= {"bos_token_id": 1, "eos_token_id": 2}
    return save(path, transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=15, **options)))


def convert(source, out, texts=TEXTS, **options):
    return mw.convert_folder(source, out, RULES, **({"texts": texts, "progress": Silent()} | options))


def both(source, out):
    config = json.loads((source / "config.json").read_text())
    dense = getattr(transformers, config["architectures"][0]).from_pretrained(source, dtype=torch.float32)
    return dense.eval(), mw.load_pretrained(out).eval(), transformers.AutoTokenizer.from_pretrained(source)


def one_by_one(tokenizer, texts):
    return [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]


def test_a_text_is_held_back_for_what_it_says():
    seen, held = split(TEXTS, 0.3)
    assert len(seen) + len(held) == len(TEXTS)
    assert 8 <= len(held) <= 28
    mixed = random.Random(0).sample(TEXTS, len(TEXTS))
    assert set(split(mixed, 0.3)[1]) == set(held)
    assert split([f" {held[0]}\n", seen[0]], 0.3) == ([seen[0]], [f" {held[0]}\n"])
    assert set(split(TEXTS, 0.1)[1]) <= set(held)
    # A side is never empty where the other has everything.
    assert split(held, 0.3) == (held, [])
    assert split(TEXTS, 0.0) == (TEXTS, [])
    many = [str(number) for number in range(10_000)]
    assert 0.09 < len(split(many, 0.1)[1]) / len(many) < 0.11


def test_cosines_of_an_encoder(tmp_path):
    source = bert(tmp_path / "bert")
    done = convert(source, tmp_path / "out")
    held = split(TEXTS, 0.1)[1]
    dense, converted, tokenizer = both(source, tmp_path / "out")
    texts, tokens = [], []
    with torch.no_grad():
        for ids in one_by_one(tokenizer, held):
            x, y = dense(ids)[0][0].double(), converted(ids)[0][0].double()
            tokens += torch.cosine_similarity(x, y).tolist()
            texts.append(float(torch.cosine_similarity(x.mean(0), y.mean(0), 0)))
    vectors, each = done.end_to_end.figures
    assert vectors.after == pytest.approx(sum(texts) / len(texts), abs=1e-5)
    assert vectors.worst == pytest.approx(min(texts), abs=1e-5)
    assert each.after == pytest.approx(sum(tokens) / len(tokens), abs=1e-5)
    assert vectors.after < 0.999
    assert done.end_to_end.data == f"{len(held)} texts held back from the 60 given"
    assert done.end_to_end.seed is None


def test_perplexity_of_a_language_model(tmp_path):
    source = gpt2(tmp_path / "gpt2")
    done = convert(source, tmp_path / "out", batch_size=3)
    dense, converted, tokenizer = both(source, tmp_path / "out")
    expected, same, count = [], 0, 0
    held = one_by_one(tokenizer, split(TEXTS, 0.1)[1])
    with torch.no_grad():
        for model in (dense, converted):
            losses = [model(ids).logits[0, :-1].double().log_softmax(-1) for ids in held]
            chosen = [log.gather(1, ids[0, 1:, None]) for log, ids in zip(losses, held, strict=True)]
            expected.append(math.exp(-float(torch.cat(chosen).mean())))
        for ids in held:
            old, new = (model(ids).logits[0, :-1].argmax(-1) for model in (dense, converted))
            same, count = same + int((old == new).sum()), count + len(old)
    perplexity, agreement = done.end_to_end.figures
    assert (perplexity.name, perplexity.better) == ("perplexity", "lower")
    assert (perplexity.before, perplexity.after) == pytest.approx(expected, rel=1e-5)
    assert agreement.after == same / count
    assert done.headline()[0][0] == "perplexity"


def test_perplexity_of_hidden_tokens(tmp_path):
    source = bert(tmp_path / "bert", transformers.BertForMaskedLM)
    done = convert(source, tmp_path / "out", batch_size=60)
    dense, converted, tokenizer = both(source, tmp_path / "out")
    held = sorted(one_by_one(tokenizer, split(TEXTS, 0.1)[1]), key=lambda ids: -ids.shape[1])
    batch = dict(tokenizer.pad({"input_ids": [ids[0].tolist() for ids in held]}, return_tensors="pt"))
    asked = ask("masked", batch, tokenizer.mask_token_id, tokenizer.all_special_ids, 0)
    hidden = asked.labels >= 0
    # A share of the words of each text, no special token, and nothing else is changed.
    words = (batch["attention_mask"] * (batch["input_ids"] >= 5)).sum(1)
    assert hidden.sum(1).tolist() == [max(1, round(0.15 * int(count))) for count in words]
    assert (asked.inputs["input_ids"][hidden] == tokenizer.mask_token_id).all()
    assert torch.equal(asked.inputs["input_ids"][~hidden], batch["input_ids"][~hidden])
    assert torch.equal(asked.labels[hidden], batch["input_ids"][hidden])
    assert (batch["input_ids"][hidden] >= 5).all()
    expected = []
    for model in (dense, converted):
        with torch.no_grad():
            log = model(**asked.inputs).logits.double().log_softmax(-1)
        expected.append(math.exp(-float(log[hidden].gather(1, asked.labels[hidden][:, None]).mean())))
    figure = done.end_to_end.figures[0]
    assert (figure.before, figure.after) == pytest.approx(expected, rel=1e-5)
    assert done.end_to_end.seed == 0
    assert len({tuple(ask("masked", batch, 4, [0, 2, 3], seed).labels.flatten().tolist()) for seed in range(9)}) > 1


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        ("BertForSequenceClassification", {"num_labels": 3}, "same class"),
        ("BertForSequenceClassification", {"num_labels": 1}, "relative error"),
        (
            "BertForSequenceClassification",
            {"num_labels": 3, "problem_type": "multi_label_classification"},
            "same labels",
        ),
        ("BertForTokenClassification", {"num_labels": 3}, "same class of a token"),
        ("BertForQuestionAnswering", {}, "same answer"),
        ("BertLMHeadModel", {"is_decoder": True}, "perplexity"),
    ],
)
def test_what_is_measured_fits_the_model(tmp_path, kind, options, name):
    source = bert(tmp_path / "bert", getattr(transformers, kind), **options)
    done = convert(source, tmp_path / "out")
    figure = done.end_to_end.figures[0]
    assert figure.name == name
    dense, converted, tokenizer = both(source, tmp_path / "out")
    if name == "same class":
        with torch.no_grad():
            held = one_by_one(tokenizer, split(TEXTS, 0.1)[1])
            same = [dense(ids).logits.argmax() == converted(ids).logits.argmax() for ids in held]
        assert figure.after == sum(same) / len(same)


def test_encoder_decoders_are_compared(tmp_path):
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    source = save(
        tmp_path / "t5", transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=15, **sizes))
    )
    figures = convert(source, tmp_path / "out").end_to_end.figures
    assert [figure.name for figure in figures] == ["same next token", "relative error"]
    assert 0 <= figures[0].after <= 1


def test_the_relative_error_is_about_the_mean():
    torch.manual_seed(0)
    x, y = torch.randn(50, 3) + 100, torch.randn(50, 3) + 100
    measure = OutputError()
    for part in (slice(0, 20), slice(20, 50)):
        measure.add(x[part], y[part], Asked({}))
    expected = ((y - x).double().square().sum() / (x - x.mean(0)).double().square().sum()).sqrt()
    assert measure.figures()[0].after == pytest.approx(float(expected), rel=1e-5)


def test_spearman_is_scipys():
    torch.manual_seed(0)
    x, y = torch.randint(5, (40,)).double(), torch.randn(40).round(decimals=0)
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize("heading", ["", "Sentence1,sentence2,score\n", "id,sentence1,sentence2,split,label\n"])
def test_pairs_with_scores(tmp_path, heading):
    source = bert(tmp_path / "bert")
    scores = [(7 * i) % 11 / 2 for i in range(20)]
    rows = [f"{TEXTS[i]},{TEXTS[i + 30]},{score}" for i, score in enumerate(scores)]
    if heading.startswith("id"):
        rows = [f"{i},{TEXTS[i]},{TEXTS[i + 30]},dev,{score}" for i, score in enumerate(scores)]
    (tmp_path / "pairs.csv").write_text(heading + "\n".join(rows) + "\n")
    done = convert(source, tmp_path / "out", metric_data=tmp_path / "pairs.csv")
    dense, converted, tokenizer = both(source, tmp_path / "out")
    found = []
    for model in (dense, converted):
        with torch.no_grad():
            vectors = [model(ids)[0][0].double().mean(0) for ids in one_by_one(tokenizer, TEXTS)]
        cosines = [float(torch.cosine_similarity(vectors[i], vectors[i + 30], 0)) for i in range(20)]
        found.append(spearmanr(cosines, scores).statistic)
    figure = done.end_to_end.figures[0]
    assert (figure.before, figure.after) == pytest.approx(found, abs=1e-6)
    assert done.end_to_end.data == "pairs.csv, 20 rows"
    assert [each.name for each in done.end_to_end.figures][1:] == ["cosine of text vectors", "cosine of token vectors"]


def test_labels_by_number_and_by_name(tmp_path):
    names = {"no": 0, "maybe": 1, "yes": 2}
    options = {"num_labels": 3, "label2id": names, "id2label": {number: name for name, number in names.items()}}
    source = bert(tmp_path / "bert", transformers.BertForSequenceClassification, **options)
    rows = [(text, TEXTS[-1 - i], list(names)[i % 3] if i % 2 else i % 3) for i, text in enumerate(TEXTS[:30])]
    done = convert(source, tmp_path / "out", metric="accuracy", metric_data=rows)
    dense, converted, tokenizer = both(source, tmp_path / "out")
    expected = []
    for model in (dense, converted):
        with torch.no_grad():
            right = [
                int(model(**tokenizer(a, b, return_tensors="pt")).logits.argmax()) == i % 3
                for i, (a, b, _) in enumerate(rows)
            ]
        expected.append(sum(right) / 30)
    (figure,) = done.end_to_end.figures
    assert (figure.name, figure.before, figure.after) == ("accuracy", *expected)
    with pytest.raises(FolderError, match=r"the label 'perhaps' of row 2 is none of the model's 3: .* no, maybe, yes"):
        convert(source, tmp_path / "x", metric_data=[("a cat", "yes"), ("a dog", "perhaps")])
    assert not (tmp_path / "x").exists()


def test_a_metric_of_ones_own(tmp_path):
    source = bert(tmp_path / "bert")
    seen = []

    def norm(model, held_out):
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.append((model.encoder.layer[0].output.dense.__class__.__name__, held_out.texts))
        assert held_out.tokenizer.mask_token == "[MASK]"
        return {"norm": torch.stack([model(**batch)[0].norm() for batch in held_out]).mean(), "texts": len(held_out)}

    done = convert(source, tmp_path / "out", metric=norm)
    held = tuple(split(TEXTS, 0.1)[1])
    assert seen == [("Linear", held), ("MonarchLinear", held)]
    names = [figure.name for figure in done.end_to_end.figures]
    assert names == ["norm", "texts"]
    dense, converted, tokenizer = both(source, tmp_path / "out")
    batch = tokenizer(list(held), padding=True, return_tensors="pt")
    batch.pop("token_type_ids")
    with torch.no_grad():
        expected = [float(model(**batch)[0].norm()) for model in (dense, converted)]
    figure = done.end_to_end.figures[0]
    assert (figure.before, figure.after) == pytest.approx(expected, rel=1e-5)
    (tmp_path / "mine.bin").write_bytes(b"1")
    for options in ({"texts": ()}, {}):
        done = convert(
            source,
            tmp_path / "again",
            metric=lambda model, held_out: held_out.file.stat().st_size,
            metric_data=tmp_path / "mine.bin",
            overwrite=True,
            **options,
        )
        assert done.end_to_end.figures[0].after == 1
        assert done.end_to_end.data == "mine.bin"


def test_a_metric_needs_no_texts_and_may_take_the_model_alone(tmp_path):
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.ViTModel(transformers.ViTConfig(**tower, image_size=16, patch_size=8))
    model.save_pretrained(tmp_path / "vit")
    pixels = torch.randn(2, 3, 16, 16)

    def mean(model):
        return model(pixels).last_hidden_state.mean()

    done = convert(tmp_path / "vit", tmp_path / "out", texts=(), metric=mean)
    figure = done.end_to_end.figures[0]
    with torch.no_grad():
        assert figure.before == pytest.approx(float(mean(model.eval())), abs=1e-6)
        assert figure.after == pytest.approx(float(mean(mw.load_pretrained(tmp_path / "out").eval())), abs=1e-6)


def test_what_fails_on_the_converted_model_is_no_loss(tmp_path):
    def fails(model):
        if isinstance(model.pooler.dense, torch.nn.Linear) and hasattr(model.encoder.layer[0].output.dense, "weight"):
            return 1
        raise KeyError("nothing")

    steps = Silent()
    done = convert(bert(tmp_path / "bert"), tmp_path / "out", metric=fails, progress=steps)
    assert done.end_to_end.figures == ()
    assert "the metric fails failed on the converted model: KeyError: 'nothing'" in steps.warnings[-1]
    assert done.headline()[0][:2] == ("end to end", "not measured")
    assert mw.load_pretrained(tmp_path / "out") is not None


def test_data_of_ones_own_is_not_calibrated_on(tmp_path):
    source = bert(tmp_path / "bert")
    (tmp_path / "more.txt").write_text("\n".join([*TEXTS[:5], "the dog runs", "a blue  cat", ""]))
    done = convert(source, tmp_path / "out", metric="error", metric_data=tmp_path / "more.txt")
    assert done.end_to_end.data == "more.txt, 2 texts that calibration does not see"
    assert [figure.name for figure in done.end_to_end.figures] == ["relative error"]
    with pytest.raises(FolderError, match="metric_data holds only texts that calibration sees"):
        convert(source, tmp_path / "x", metric_data=TEXTS[:5])


@pytest.mark.parametrize("options", [{"texts": ()}, {"texts": TEXTS[:4]}, {"held_out": 0.0}])
def test_without_held_out_texts_it_says_how_to_get_a_figure(tmp_path, options):
    steps = Silent()
    done = convert(bert(tmp_path / "bert"), tmp_path / "out", progress=steps, **options)
    assert done.end_to_end.figures == ()
    said = "no texts were given; give texts" if options.get("texts", 1) == () else "texts was held back; give more"
    assert said in done.end_to_end.missing
    assert "metric_data" in repr(done)


def _zeroes(model):
    for parameter in model.parameters():
        parameter.data.zero_()
    return 0.0


def test_a_metric_that_changes_the_converted_model_writes_nothing(tmp_path):
    def changes(model):
        return _zeroes(model) if hasattr(model.encoder.layer[0].output.dense, "right") else 0.0

    with pytest.raises(FolderError, match="changed the converted model"):
        convert(bert(tmp_path / "bert"), tmp_path / "out", metric=changes)
    assert not (tmp_path / "out").exists()


def test_a_metric_with_other_names_each_time_is_no_figure(tmp_path):
    calls, steps = [], Silent()
    done = convert(
        bert(tmp_path / "bert"),
        tmp_path / "out",
        metric=lambda model: {f"k{calls.append(0) or len(calls)}": 1.0},
        progress=steps,
    )
    assert done.end_to_end.figures == ()
    assert "gave k1 for the dense model and k2 for the converted one" in steps.warnings[-1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metric": "cosin"}, ValueError, "metric='cosin' is unknown; did you mean 'cosine'"),
        ({"metric": 3}, TypeError, "metric must be "),
        ({"metric": lambda: 1}, TypeError, r"metric must be callable as metric\(model, held_out\)"),
        ({"metric": lambda model: "good"}, FolderError, "must give a number, or numbers by name; got str"),
        ({"metric": lambda model: {}}, FolderError, "gave no number"),
        ({"metric": lambda model: 1 / 0}, FolderError, "failed on the dense model: ZeroDivisionError"),
        ({"metric": "perplexity"}, FolderError, "metric='perplexity' needs a model that predicts tokens, and this one"),
        ({"metric": "agreement"}, FolderError, "this one is an encoder without a head; use metric='cosine'"),
        ({"metric": "spearman"}, FolderError, "metric='spearman' needs metric_data, a table .* text, text, score"),
        ({"metric": "accuracy", "metric_data": TEXTS[:3]}, FolderError, "needs metric_data, a table .* text, label"),
        ({"metric": "accuracy", "metric_data": [("a", "b", 1)] * 2}, FolderError, "needs a classifier of texts"),
        ({"metric_data": [("a cat", 1), ("a dog", 2)]}, FolderError, "needs pairs of texts with a score"),
        ({"metric_data": [("a", "b", "x"), ("a", "b", "1")]}, FolderError, "scores that are numbers; .* has 'x'"),
        ({"metric_data": [("a", "b", "nan"), ("a", "b", "1")]}, FolderError, "scores that are numbers; .* has 'nan'"),
        (
            {"metric_data": [("a", "b", "1"), ("a", "c", "1")]},
            FolderError,
            "needs scores that differ; .* has 1 in every",
        ),
        ({"metric": _zeroes}, FolderError, "the metric _zeroes changed the dense model, .* first"),
        ({"metric": lambda model: float(model.half() is not None)}, FolderError, "changed the dense model"),
        ({"metric_data": [("a", "b", "1")]}, FolderError, "has 1 rows; a metric needs two or more"),
        ({"metric_data": [("a", "b", "1"), ("a", "b")]}, FolderError, "has 2 columns in row 2; expected 3"),
        ({"metric_data": [("a", "b", "1", "2")] * 2}, FolderError, "has 4 columns; expected text,target"),
        ({"metric_data": [1, 2]}, TypeError, "metric_data must be a file, a list of texts, or one of rows"),
        ({"metric_data": "none.csv"}, FolderError, "metric_data='none.csv' does not exist"),
        ({"metric_data": "x.json"}, FolderError, "is a .json file; expected .txt"),
        ({"metric_data": "blank.txt"}, FolderError, "is empty; expected one text per line"),
        ({"metric_data": "bytes.csv"}, FolderError, "is no UTF-8 text"),
        ({"metric": lambda model: 1, "metric_data": ["a"]}, TypeError, "must be a file for a metric of your own"),
        ({"metric": lambda model: 1, "metric_data": "none"}, FolderError, "'none' does not exist"),
        ({"metric": "cosine", "texts": ()}, FolderError, "metric='cosine' needs texts that it can be measured on"),
        ({"held_out": 1.0}, ValueError, "held_out must be a share from 0 to below 1; got 1.0"),
    ],
)
def test_refusals_come_before_the_work_and_leave_nothing(tmp_path, monkeypatch, options, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.json").write_text("[]")
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "bytes.csv").write_bytes(b"a,\xff\n")
    source = bert(tmp_path / "bert")
    monkeypatch.setattr("milkweed.convert.hub.folder._plan", lambda *_: pytest.fail("too late"))
    with pytest.raises(error, match=message):
        convert(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="out=None only plans, which measures no model"):
        mw.convert_folder(source, None, metric="cosine")


@pytest.mark.parametrize(
    ("values", "pooling"),
    [
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode": ["cls", "mean"]}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ([], "mean"),
    ],
)
def test_the_pooling_of_a_sentence_encoder(tmp_path, values, pooling):
    assert pooling_of(tmp_path) == "mean"
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(values))
    modules = [
        {"path": "", "type": "x.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert pooling_of(tmp_path) == pooling
    modules[1]["path"] = "../1_Pooling"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert pooling_of(tmp_path) == "mean"


def test_vectors_as_a_sentence_encoder_makes_them():
    from milkweed.convert.evaluation.outputs import text_vectors

    x = torch.randn(2, 4, 3)
    inputs = {"input_ids": torch.ones(2, 4), "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])}
    found = {pooling: text_vectors(x, inputs, pooling)[1] for pooling in ("cls", "lasttoken", "max", "mean")}
    real = x[1, :2].double()
    expected = {"cls": real[0], "lasttoken": real[1], "max": real.amax(0), "mean": real.mean(0)}
    for pooling, vector in expected.items():
        torch.testing.assert_close(found[pooling], vector)
