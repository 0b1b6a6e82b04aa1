"""The model card of a converted model: README.md, which says what was done and how to load it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from milkweed._version import __version__
from milkweed.convert.costs import count_parameters
from milkweed.convert.hub.transformers_files import HUB_ID
from milkweed.convert.record import structured_layers

CARD = "README.md"
# Of the dense model's card these stay true; its figures, examples and widgets do not.
_CARRIED = ("license", "license_name", "license_link", "language", "pipeline_tag")


def model_card(
    model: nn.Module, source: str | None = None, facts: Sequence[str] = (), dense_card: Path | None = None
) -> str:
    """Write the card of a converted transformers model: where it comes from, what was converted, how to load it."""
    from huggingface_hub import ModelCardData

    config: Any = model.config
    name = source or str(getattr(config, "_name_or_path", "") or "")
    head: dict[str, Any] = {"library_name": "transformers", "tags": ["milkweed", "monarch", "sub-quadratic"]}
    if HUB_ID.fullmatch(name) and "/" in name and not Path(name).exists():
        head |= {"base_model": name, "base_model_relation": "quantized"}
    head |= _carried(dense_card)
    layers = structured_layers(model)
    kinds = sorted({type(layer).__name__ for layer in layers})
    origin = f"`{name}`" if "base_model" in head else "a dense model"
    lines = [
        "---",
        ModelCardData(**head).to_yaml().strip(),
        "---",
        "",
        f"# {type(model).__name__}, converted by milkweed",
        "",
        f"{len(layers)} linear layers of {origin} are products of small dense blocks here ({', '.join(kinds)}). The "
        f"model has {count_parameters(model):,} parameters. milkweed {__version__} converted it.",
        "",
        *(f"- {fact}" for fact in facts),
        *([""] if facts else []),
        "## Use",
        "",
        "```bash",
        "pip install 'milkweed[hf]'",
        "```",
        "",
        "```python",
        "import milkweed  # tells transformers how the layers are made",
        f"from transformers import {type(model).__name__}",
        "",
        f'model = {type(model).__name__}.from_pretrained("THIS_FOLDER")',
        "```",
        "",
        "Without `import milkweed`, transformers stops with an error about sizes. `model.dequantize()` gives an "
        "ordinary dense model with the same outputs.",
        "",
        "The licence and the intended uses are those of the dense model.",
        "",
    ]
    return "\n".join(lines)


def _carried(card: Path | None) -> dict[str, Any]:
    """What of the head of the dense model's card belongs to the converted one too; nothing if it cannot be read."""
    from huggingface_hub import ModelCard

    if card is None or not card.is_file():
        return {}
    try:
        found = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    except Exception:  # of any text, so of any kind
        return {}
    plain = (str, list)
    return {key: found[key] for key in _CARRIED if isinstance(found.get(key), plain)}
