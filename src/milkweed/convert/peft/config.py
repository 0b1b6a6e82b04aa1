"""The configuration of Monarch updates as a PEFT method."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

import peft
from peft import PeftConfig
from peft.utils.peft_types import PeftType

from milkweed._arguments import is_kind
from milkweed.convert.peft.peft_type import NAME


@dataclasses.dataclass
class MonarchAdapterConfig(PeftConfig):
    """A PEFT method: beside each layer an update (lora_alpha / r) · M, M being a Monarch matrix that starts at zero.

    What has the name of an option of ``peft.LoraConfig`` means the same, and with ``nblocks=1`` the method is LoRA: M
    is B A with A (r, in) and B (out, r). With more blocks it has r · (in + out) · nblocks parameters and any rank up to
    r · nblocks². Everything of PEFT takes it as it takes LoRA: ``peft.get_peft_model``, ``PeftModel.from_pretrained``.
    Layers may be ``torch.nn.Linear``, transformers' ``Conv1D`` or structured.

    Args:
        r: Rank of each slice of M, at most min(in_block, out_block).
        nblocks: Blocks per factor.
        target_modules: The layers, as in LoRA: names or ends of names, a pattern for whole names, or ``"all-linear"``:
            all linear layers except the head and those too small for the blocks. By default LoRA's of the architecture.
        exclude_modules: Layers that are left out, by names or a pattern.
        lora_alpha: Divided by r, or by √r under ``use_rslora``, it is the scale of M; r by default.
        lora_dropout: Of the update's inputs.
        use_rslora: Rank-stabilised scale.
        bias: Which biases are trained: ``"none"``, ``"all"`` or, those of the layers, ``"monarch_only"``.
        modules_to_save: Further modules that are trained and saved, such as a new head.
        init_weights: Whether M starts at zero; otherwise it starts at random.
        layers_to_transform: Indices of layers to which ``target_modules`` is narrowed.
        layers_pattern: The name of the list that they are indices of.
        rank_pattern: Other ranks by names or patterns.
        alpha_pattern: Other ``lora_alpha`` by names or patterns.

    Raises:
        ValueError: A number is out of range, or the bias is unknown.

    Source:
        MoRe (arXiv 2408.17383), with LoRA's scale (arXiv 2106.09685) and rank-stabilised scale (arXiv 2312.03732).

    Example:
        >>> import peft
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> tuned = peft.get_peft_model(model, mw.MonarchAdapterConfig(nblocks=4, target_modules=["0"]))
        >>> tuned.get_nb_trainable_parameters()
        (512, 5322)
    """

    r: int = 1
    nblocks: int = 4
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    use_rslora: bool = False
    bias: str = "none"
    modules_to_save: list[str] | None = None
    init_weights: bool = True
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = _peft_type()
        self.lora_alpha = self.r if self.lora_alpha is None else self.lora_alpha
        self.target_modules, self.exclude_modules = _as_set(self.target_modules), _as_set(self.exclude_modules)
        self._check_numbers()
        if self.bias not in {"none", "all", "monarch_only"}:
            raise ValueError(f"bias must be 'none', 'all' or 'monarch_only'; got bias={self.bias!r}")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(
                "layers_to_transform narrows target_modules that are a list of names; got "
                f"target_modules={self.target_modules!r}; write the indices into the pattern"
            )
        if self.layers_pattern and not self.layers_to_transform:
            raise ValueError(f"layers_pattern={self.layers_pattern!r} needs layers_to_transform, e.g. [0, 1]")

    def _check_numbers(self) -> None:
        for name, pattern in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            if not isinstance(pattern, Mapping):
                raise TypeError(f"{name} must map names or patterns to numbers; got {pattern!r}")
        ranks = {"r": self.r, "nblocks": self.nblocks}
        ranks |= {f"rank_pattern[{name!r}]": value for name, value in self.rank_pattern.items()}
        for name, value in ranks.items():
            if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1 on; got {name}={value!r}")
        scales: dict[str, Any] = {"lora_alpha": self.lora_alpha}
        scales |= {f"alpha_pattern[{name!r}]": value for name, value in self.alpha_pattern.items()}
        for name, value in scales.items():
            if not is_kind(value, float) or not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number; got {name}={value!r}")
        if not is_kind(self.lora_dropout, float) or not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must be in 0 .. 1, 1 excluded; got lora_dropout={self.lora_dropout!r}")


def _peft_type() -> PeftType:
    try:
        return PeftType(NAME)
    except ValueError as error:
        raise RuntimeError(
            f"peft {peft.__version__} does not know Monarch adapters: it is built in another way than 0.21, which "
            "milkweed extends, as the warning of its import says; install peft 0.21"
        ) from error


def _as_set(names: Any) -> Any:
    return set(names) if isinstance(names, list | tuple) else names
