"""Encoders and a word count on retrieval sets of long documents, nDCG@10 per set, with long and with cut documents.

    python examples/long_document_sets.py WIKITEXT SHAKESPEARE data/long
    milkweed train m2-bert-mlm --name mlm --data.source data/long/pretrain.txt ...
    python examples/long_document_retrieval.py data/long/sets runs/mlm --lengths 128 1024

compares TF-IDF, an encoder with random numbers and the pre-trained one as it is. More runs may be named, such as those
of `milkweed train m2-bert-retrieval`; `milkweed evaluate RUN` gives the same figure for them.
"""

import argparse
import json
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from sklearn.feature_extraction.text import TfidfVectorizer

from milkweed.convert import load_pretrained
from milkweed.convert.checkpoints.m2 import extend_positions
from milkweed.data import Retrieval
from milkweed.data.retrieval_sets import RetrievalSet, read_sets
from milkweed.models import M2Bert
from milkweed.tasks import Retrieval as RetrievalTask
from milkweed.tasks.search import search_ndcg
from milkweed.train.module import SequenceModule
from milkweed.train.quiet_lightning import quiet


def by_words(found: RetrievalSet, tokenizer, length: int) -> float:
    """TF-IDF of the same tokens that an encoder reads, weights from the corpus."""
    numbers = {name: place for place, name in enumerate(found.passages)}

    def tokens(text: str) -> list[str]:
        return tokenizer.convert_ids_to_tokens(tokenizer(text, truncation=True, max_length=length)["input_ids"][1:-1])

    count = TfidfVectorizer(analyzer=tokens, sublinear_tf=True)
    passages = torch.from_numpy(count.fit_transform(found.passages.values()).toarray())
    queries = torch.from_numpy(count.transform([found.queries[name] for name in found.gains]).toarray())
    judged = [(n, numbers[p], gain) for n, known in enumerate(found.gains.values()) for p, gain in known.items()]
    rows, places, gains = (torch.tensor(column) for column in zip(*judged, strict=True))
    nobody = torch.full((len(queries),), -1)
    return search_ndcg(queries, passages, rows, places, gains, nobody).mean().item()


def by_encoder(model: M2Bert, data: Retrieval, pooling: str) -> dict[str, float]:
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    module = SequenceModule(model, RetrievalTask(pooling=pooling))
    (found,) = trainer.test(module, dataloaders=data.test_dataloader(), verbose=False)
    return {name.removeprefix("test_ndcg_"): value for name, value in found.items() if name.startswith("test_ndcg_")}


def reader(run: str, length: int) -> M2Bert:
    """The encoder of a run; one that was trained on shorter texts is extended, its kernels as they are."""
    trained = load_pretrained(Path(run))
    model = M2Bert(**(trained.options | {"head": "none", "d_output": None}))
    model.encoder.load_state_dict(trained.encoder.state_dict())
    return longer(model, length)


def longer(model: M2Bert, length: int) -> M2Bert:
    return extend_positions(model, length) if model.options["length"] < length else model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets")
    parser.add_argument("pretrained", help="run of m2-bert-mlm")
    parser.add_argument("runs", nargs="*", help="runs of m2-bert-retrieval")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--pooling", default="mean")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    quiet()
    warnings.filterwarnings("ignore", message="The parameter 'token_pattern' will not be used")
    table: list[dict[str, object]] = []

    def note(name: str, length: int, figures: dict[str, float]) -> None:
        mean = sum(figures.values()) / len(figures)
        shown = "".join(f"  {each} {value:.3f}" for each, value in figures.items())
        print(f"{name:24} {length:6}  mean {mean:.3f}{shown}", flush=True)
        table.append({"encoder": name, "length": length, "mean": mean} | figures)

    for length in options.lengths:
        pretrained = reader(options.pretrained, length)
        torch.manual_seed(0)
        models = {"random": longer(M2Bert(**reader(options.pretrained, 1).options), length), "pretrained": pretrained}
        models |= {Path(run).name: reader(run, length) for run in options.runs}
        size = pretrained.options["d_input"]
        data = Retrieval(options.sets, options.pretrained, vocabulary_size=size, batch_size=16, length=length)
        sets = read_sets(options.sets, None)["test"]
        note("TF-IDF", length, {each.name: by_words(each, data.tokenizer, length) for each in sets})
        for name, model in models.items():
            note(name, length, by_encoder(model, data, options.pooling))
    if options.out:
        options.out.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
