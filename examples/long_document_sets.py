"""Three retrieval sets of long documents, made from what is at hand, in the layout of BEIR.

    python examples/long_document_sets.py WIKITEXT SHAKESPEARE OUT

`encyclopedia` and `plays` cut a text into documents of some 600 words, take four passages out of the later part of each
(behind its first 150 words, so that a reader of 128 tokens never comes near the place), and ask which document each was
taken from. `docstrings` asks, by its summary, for the rest of a docstring, over the Python packages that are installed.
Articles, stretches of plays and source files each belong to one of train, dev and test as a whole.

Two more are made of the documents of the training part only: OUT/pretrain.txt, their text, and in OUT/passages many
short pairs, a passage of some 80 words and a sentence that was taken out of it.
"""

import ast
import importlib.util
import json
import re
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np

WORDS, BEHIND, QUERIES = 600, 150, 4
PACKAGES = ("numpy", "scipy", "sklearn", "pandas", "torch", "matplotlib", "networkx", "sympy", "transformers")
MOST_DOCSTRINGS, SEARCHED = 4000, 1500
SPLITS = ("train", "dev", "test")

Passages = list[str]


def encyclopedia(file: Path) -> dict[str, list[Passages]]:
    """WikiText's articles, whole ones per split, as documents that are lists of sentences."""
    text = re.sub(r" @(.)@ ", r"\1", file.read_text())
    articles = re.split(r"\n = [^=\n]+ = \n", text)[1:]
    order = np.random.RandomState(0).permutation(len(articles))
    bounds = [len(order) * share // 100 for share in (0, 70, 80, 100)]
    found: dict[str, list[Passages]] = {}
    for name, first, last in zip(SPLITS, bounds, bounds[1:], strict=False):
        found[name] = []
        for place in sorted(order[first:last]):
            lines = [line.strip(" =") for line in articles[place].split("\n") if line.strip()]
            found[name] += documents([sentence for line in lines for sentence in re.split(r"(?<= [.?!]) ", line)])
    return found


def plays(file: Path) -> dict[str, list[Passages]]:
    """Shakespeare's speeches in their order, as documents that are lists of speeches."""
    speeches = [" ".join(speech.split()) for speech in file.read_text().split("\n\n")]
    bounds = [len(speeches) * share // 100 for share in (0, 70, 80, 100)]
    parts = zip(SPLITS, bounds, bounds[1:], strict=False)
    return {name: documents(speeches[first:last]) for name, first, last in parts}


def documents(passages: Passages) -> list[Passages]:
    """Consecutive passages, as many as make `WORDS` words; what is left at the end is too short and dropped."""
    found: list[Passages] = []
    kept: Passages = []
    for passage in passages:
        kept.append(passage)
        if sum(len(each.split()) for each in kept) >= WORDS:
            found.append(kept)
            kept = []
    return found


def take_out(document: Passages, seed: int) -> tuple[Passages, Passages]:
    """Choose passages of 8 to 60 words from the later part; the rest is the document."""
    starts = np.cumsum([0] + [len(passage.split()) for passage in document])
    fits = [n for n, p in enumerate(document) if starts[n] >= BEHIND and 8 <= len(p.split()) <= 60]
    chosen = set(np.random.RandomState(seed).permutation(fits)[:QUERIES].tolist())
    queries = [re.sub(r"^[A-Z][\w ]*: ", "", document[place]) for place in sorted(chosen)]  # who speaks is not told
    return queries, [passage for place, passage in enumerate(document) if place not in chosen]


def docstrings() -> tuple[dict[str, list[tuple[str, str]]], list[str]]:
    """Summaries and what follows them, by source files, and texts to pre-train on; some thousands, by their hashes."""
    found: dict[str, tuple[str, str, str]] = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        root = Path(spec.origin).parent
        for file in sorted(root.rglob("*.py")):
            if {"tests", "test", "_vendor"} & set(file.parts):
                continue
            name = f"{package}/{file.relative_to(root)}"
            try:
                tree = ast.parse(file.read_text(errors="ignore"))
            except SyntaxError:  # of another Python
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
                    summary, _, rest = text.partition("\n\n")
                    summary = " ".join(summary.split())
                    if 4 <= len(summary.split()) <= 60 and len(rest.split()) >= 200:
                        found.setdefault(summary, (name, summary, rest))
    by_hash = sorted(found.values(), key=lambda each: sha256(each[1].encode()).hexdigest())
    unique = {rest[:300]: (name, summary, rest) for name, summary, rest in by_hash[:MOST_DOCSTRINGS]}
    parts: dict[str, list[tuple[str, str]]] = {name: [] for name in SPLITS}
    training = []
    for number, (name, summary, rest) in enumerate(unique.values()):
        draw = int(sha256(name.encode()).hexdigest(), 16) % 100
        split = "train" if draw < 75 else "dev" if draw < 80 else "test"
        if number < SEARCHED:
            parts[split].append((summary, rest))
        if split == "train":
            training.append(rest)
    return parts, training


def write_set(folder: Path, pairs: dict[str, list[tuple[list[str], str]]]) -> list[str]:
    """Write corpus.jsonl, queries.jsonl and qrels/*.tsv; give the training documents."""
    (folder / "qrels").mkdir(parents=True)
    corpus, queries = [], []
    for split, documents in pairs.items():
        judged = ["query-id\tcorpus-id\tscore"]
        for asked, text in documents:
            name = f"d{len(corpus)}"
            corpus.append({"_id": name, "title": "", "text": text})
            for query in asked:
                judged.append(f"q{len(queries)}\t{name}\t1")
                queries.append({"_id": f"q{len(queries)}", "text": query})
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(judged) + "\n")
        print(f"{folder.name} {split}: {len(documents)} documents, {len(judged) - 1} queries")
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [text for _, text in pairs["train"]]


def short_pairs(text: str, random: np.random.RandomState) -> list[dict[str, str]]:
    """Passages of some 80 words, each with a sentence of 5 to 40 words that was taken out of it."""
    sentences = [" ".join(each.split()) for each in re.split(r"\n\n|(?<=[.?!]) ", text)]
    found, kept = [], []
    for sentence in sentences:
        kept.append(sentence)
        if sum(len(each.split()) for each in kept) >= 80:
            fits = [place for place, each in enumerate(kept) if 5 <= len(each.split()) <= 40]
            if len(kept) > 1 and fits:
                query = kept.pop(random.choice(fits))
                found.append({"query": query, "passage": " ".join(kept)})
            kept = []
    return found


def main(wikitext: Path, shakespeare: Path, out: Path) -> None:
    training = []
    for name, parts in (("encyclopedia", encyclopedia(wikitext)), ("plays", plays(shakespeare))):
        number = 0
        pairs: dict[str, list[tuple[list[str], str]]] = {}
        for split, found in parts.items():
            pairs[split] = []
            for document in found:
                asked, left = take_out(document, number)
                number += 1
                pairs[split].append((asked, " ".join(left)))
        training += write_set(out / "sets" / name, pairs)
    found, rests = docstrings()
    write_set(
        out / "sets" / "docstrings",
        {split: [([summary], rest) for summary, rest in part] for split, part in found.items()},
    )
    training += rests
    order = np.random.RandomState(0).permutation(len(training))  # that every cut of the text has all three kinds
    (out / "pretrain.txt").write_text("\n\n".join(training[place] for place in order) + "\n")
    random = np.random.RandomState(0)
    pairs = [pair for place in order for pair in short_pairs(training[place], random)]
    (out / "passages").mkdir()
    kept = min(500, len(pairs) // 10)
    parts = {"train": pairs[: -2 * kept], "validation": pairs[-2 * kept : -kept], "test": pairs[-kept:]}
    for name, rows in parts.items():
        (out / "passages" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(pairs)} short pairs")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
