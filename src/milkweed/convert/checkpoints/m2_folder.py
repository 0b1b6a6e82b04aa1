"""M2-BERT checkpoints of the HazyResearch/m2 repository as folders of transformers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from milkweed._arguments import checked
from milkweed._suggest import unknown
from milkweed.convert.checkpoints.m2 import extend_positions, load_m2_bert, read_m2_checkpoint
from milkweed.convert.hub.transformers_files import TOKENIZER_CONFIG, read_tokenizer

_POOLINGS = ("cls", "mean")


@checked(but=("source", "tokenizer"))
def save_m2_folder(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    out: str | os.PathLike[str],
    *,
    padding: str = "legacy",
    length: int | None = None,
    kernels: str = "keep",
    pooling: str | None = None,
    tokenizer: Any = None,
) -> Path:
    """Write a published M2-BERT as a folder that transformers reads wherever milkweed has been imported.

    ``AutoModel.from_pretrained(out)`` and the Auto classes of all heads read it, with ``pooling`` also
    ``SentenceTransformer(out)``. Nothing of the source is executed. Needs the extra ``hf``.

    Args:
        source: The authors' file or folder, or their tensors by name.
        out: The new folder.
        padding: ``"legacy"`` reads padding as the published models were trained to; ``"masked"`` leaves it out.
        length: Longest text of the new model, in tokens, if that is to be longer; see
            [`milkweed.convert.checkpoints.m2.extend_positions`][].
        kernels: As there.
        pooling: ``"mean"`` or ``"cls"`` for a folder of sentence-transformers, which needs ``padding="masked"``; by
            default the model keeps the head that it has.
        tokenizer: Of transformers; by default the one in the source's folder, if there is one.

    Returns:
        The folder.

    Raises:
        ValueError: An option is unknown, or the source is no M2-BERT.
        FileExistsError: There is something at `out`.

    Example:
        >>> mw.convert.checkpoints.m2_folder.save_m2_folder("m2-bert-80M-2k-retrieval", "my-encoder")
        ... # doctest: +SKIP
    """
    if pooling is not None and pooling not in _POOLINGS:
        raise ValueError(unknown("pooling", pooling, _POOLINGS))
    if pooling is not None and padding == "legacy":
        raise ValueError("pooling needs padding='masked': sentence-transformers pads to the longest text of a batch")
    folder = Path(out)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise FileExistsError(f"out={str(out)!r} is not empty; choose a new folder")
    tensors = source if isinstance(source, Mapping) else read_m2_checkpoint(source)
    model = load_m2_bert(tensors, padding=padding)
    if length is not None:
        model = extend_positions(model, length, kernels)
    if tokenizer is None and not isinstance(source, Mapping):
        tokenizer = _tokenizer(Path(source))

    from milkweed.models.hf import m2_bert
    from milkweed.models.hf.sentence_transformer import save_sentence_transformer

    if pooling is not None:
        encoder = m2_bert.M2BertForTextEncoding.from_plain(model, pooling=pooling)
        save_sentence_transformer(encoder, folder, tokenizer)
        return folder
    kinds = {
        "masked_lm": m2_bert.M2BertForMaskedLM,
        "classification": m2_bert.M2BertForSequenceClassification,
        "none": m2_bert.M2BertModel,
    }
    kinds[model.options["head"]].from_plain(model).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(source: Path) -> Any:
    """The tokenizer of a folder, or None."""
    if source.is_dir() and (source / TOKENIZER_CONFIG).is_file():
        with suppress(OSError, ValueError):
            return read_tokenizer(source)
    return None
