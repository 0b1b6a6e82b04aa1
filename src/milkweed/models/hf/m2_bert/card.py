"""The model card of an M2-BERT: README.md, which says what the folder holds and how to load it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from milkweed._version import __version__

CARD = "README.md"
_TASKS = {
    "M2BertForMaskedLM": ("fill-mask", "AutoModelForMaskedLM"),
    "M2BertForSequenceClassification": ("text-classification", "AutoModelForSequenceClassification"),
    "M2BertForTokenClassification": ("token-classification", "AutoModelForTokenClassification"),
    "M2BertForQuestionAnswering": ("question-answering", "AutoModelForQuestionAnswering"),
    "M2BertForTextEncoding": ("feature-extraction", "AutoModelForTextEncoding"),
    "M2BertModel": ("feature-extraction", "AutoModel"),
}


def write_card(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the card of a model, unless there is one already or the folder could not be written."""
    file = Path(path)
    if file.parent.is_dir() and not file.exists():
        file.write_text(card(model), encoding="utf-8")


def card(model: Any) -> str:
    """The card of a model."""
    config, name = model.config, type(model).__name__
    task, auto = _TASKS.get(name, ("feature-extraction", "AutoModel"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    legacy = config.padding == "legacy"
    padding = (
        f"It was trained reading the padding: pad every text to {config.max_position_embeddings} tokens."
        if legacy
        else "Padding on the right of a text does not change its outputs."
    )
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {task}",
        "tags:\n- milkweed\n- m2_bert\n- monarch-mixer\n- sub-quadratic",
        "---",
        "",
        f"# {name}",
        "",
        "An M2-BERT ([Monarch Mixer](https://arxiv.org/abs/2310.12109)): an encoder of texts with gated long "
        "convolutions in place of attention, and block-diagonal matrices in its feed-forward layers.",
        "",
        f"- {parameters:,} parameters, {config.num_hidden_layers} blocks of {config.hidden_size} channels",
        f"- {config.vocab_size:,} tokens, texts of up to {config.max_position_embeddings:,} of them",
        f"- {padding}",
        "",
        "## Use",
        "",
        "```bash",
        "pip install 'milkweed[hf]'",
        "```",
        "",
        "```python",
        "import milkweed  # tells transformers of this architecture",
        f"from transformers import {auto}",
        "",
        f'model = {auto}.from_pretrained("THIS_FOLDER")',
        "```",
        "",
        "Without `import milkweed` transformers stops, as it does not know the model type `m2_bert`. No code "
        "comes with this folder.",
        "",
        f"Written by milkweed {__version__}.",
        "",
    ]
    return "\n".join(lines)
