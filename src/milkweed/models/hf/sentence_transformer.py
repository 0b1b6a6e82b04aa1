"""M2-BERT as a folder that sentence-transformers reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from milkweed._files import atomic_write
from milkweed.models.hf.m2_bert import M2BertForTextEncoding
from milkweed.nn.wrappers import through_wrappers


@through_wrappers(changes=False)
def save_sentence_transformer(
    model: M2BertForTextEncoding, folder: str | os.PathLike[str], tokenizer: Any = None
) -> None:
    """Write a folder that ``sentence_transformers.SentenceTransformer`` reads.

    Whoever reads it must have imported `milkweed.models.hf.m2_bert`, which tells transformers of its classes.

    Args:
        model: With pooling ``"mean"`` or ``"cls"``, and ``padding="masked"``.
        folder: Where; it is made if needed.
        tokenizer: Of transformers; without one its files have to be added.

    Raises:
        ValueError: The pooling or the padding cannot be said in such a folder.
        TypeError: The model is of another class.
        NotADirectoryError: There is a file where the folder is to be.
    """
    if not isinstance(model, M2BertForTextEncoding):
        raise TypeError(f"model must be an M2BertForTextEncoding, which has a pooling; got {type(model).__name__}")
    if Path(folder).is_file():
        raise NotADirectoryError(f"{folder} is a file; name a folder, which may be new")
    config = model.config
    if config.pooling == "attention":
        raise ValueError("sentence-transformers has no pooling='attention'; use 'mean' or 'cls'")
    if config.padding == "legacy":
        raise ValueError(
            "padding='legacy' reads the padding, and sentence-transformers pads to the longest text of a batch, so "
            "that embeddings would depend on it; use this class itself with tokenizer(padding='max_length'), "
            "or train with padding='masked'"
        )
    folder = Path(folder)
    model.bert.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    kinds = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling")]
    modules = [
        {"idx": int(name), "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for name, path, kind in kinds
    ]
    pooling = {
        "word_embedding_dimension": config.hidden_size,
        "pooling_mode_cls_token": config.pooling == "cls",
        "pooling_mode_mean_tokens": config.pooling == "mean",
    }
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": config.max_position_embeddings, "do_lower_case": False},
    }
    for name, content in files.items():
        with atomic_write(folder / name) as file:
            file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
