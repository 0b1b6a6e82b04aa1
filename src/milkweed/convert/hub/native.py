"""Converted models as transformers knows quantised ones: a config and a quantizer, which register themselves.

transformers has been imported before this module is. What it saves by itself holds the structure of every layer in
``config.json`` under ``quantization_config``, and what it loads by itself is rebuilt from there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

try:
    from transformers.quantizers import auto
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('MilkweedConfig is a config of transformers: pip install "milkweed[hf]"') from error

from milkweed._arguments import checked
from milkweed._version import __version__
from milkweed.convert.apply import convert_, densify_
from milkweed.convert.conversion_report import ConversionReport
from milkweed.convert.experts import split_recorded_
from milkweed.convert.hub.attach import attach, write_config
from milkweed.convert.hub.transformers_files import METHOD
from milkweed.convert.metadata import check
from milkweed.convert.plan import plan_conversion
from milkweed.convert.record import (
    ENTRY,
    build_entry,
    check_size,
    conversion_record,
    mark,
    rebuild,
    recorded_names,
    structured_layers,
)
from milkweed.convert.rules import Rules, default_rules
from milkweed.convert.skeleton import skeleton_of
from milkweed.nn.structured_linear import LayerConfig, MonarchConfig

FORMAT = 1
"""The version of what stands under ``quantization_config``."""
_HALF = {torch.float16, torch.bfloat16}


class MilkweedConfig(QuantizationConfigMixin):
    """What transformers' ``from_pretrained(..., quantization_config=...)`` converts a model to while it is loaded.

    A folder that holds a converted model needs none: its ``config.json`` says what its layers are. The weights are read
    and projected in float32 and cast afterwards to the dtype that was asked for. Where weights stay on the disk
    (``device_map`` with ``"disk"``) nothing can be projected, which is refused.

    Args:
        nblocks: Blocks per factor of the Monarch matrices, for every linear layer except the output heads.
        rank: Rank of each slice; as much as fits by default.
        rules: Other layers or other structures, instead of the two: as for `milkweed.plan_conversion`.
        calibration: Batches to calibrate on: as for `milkweed.plan_conversion`.
        layers: The structure of every layer, as a converted model's ``config.json`` holds it.

    Raises:
        ValueError: A number is below 1, or the list of layers is not well formed.

    Example:
        >>> from transformers import AutoModel
        >>> config = mw.MilkweedConfig(nblocks=4)
        >>> model = AutoModel.from_pretrained("my-encoder", quantization_config=config)  # doctest: +SKIP
        >>> config.to_dict()["nblocks"]
        4
    """

    @checked(but=("rules", "calibration", "layers"))
    def __init__(
        self,
        nblocks: int = 4,
        rank: int | None = None,
        *,
        rules: Rules | LayerConfig | None = None,
        calibration: Any = None,
        layers: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        for name, value in (("nblocks", nblocks), ("rank", rank)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {name}={value}")
        self.quant_method = cast(Any, METHOD)
        self.nblocks, self.rank, self.rules, self.calibration = nblocks, rank, rules, calibration
        listed = list(layers) if isinstance(layers, tuple) else layers
        self.layers = [dict(entry) for entry in check(listed, [ENTRY], "layers", "quantization_config")]

    @classmethod
    def from_dict(cls, config_dict: Any, return_unused_kwargs: bool = False, **options: Any) -> Any:
        """Read what ``config.json`` holds.

        Args:
            config_dict: The values under ``quantization_config``.
            return_unused_kwargs: Whether to return the options too.
            **options: transformers' own, none of which is used.

        Returns:
            The config.

        Raises:
            ValueError: The file was written by a later version, or is damaged.
        """
        found = config_dict.get("format", FORMAT)
        if type(found) is not int or found < 1:
            raise ValueError(f"quantization_config.format of config.json must be a whole number; got {found!r}")
        if found > FORMAT:
            raise ValueError(
                f"quantization_config.format of config.json is {found}; milkweed {__version__} reads {FORMAT}; install "
                f"milkweed {config_dict.get('milkweed', 'in the version that wrote it')}, or a later one"
            )
        try:
            config = cls(**{key: config_dict[key] for key in ("nblocks", "rank", "layers") if key in config_dict})
        except TypeError as error:
            raise ValueError(f"quantization_config of config.json: {error}") from error
        return (config, options) if return_unused_kwargs else config

    def plan(self, model: nn.Module) -> Any:
        """Plan the conversion of a model.

        Args:
            model: The dense model.

        Returns:
            The plan.

        Raises:
            ValueError: As for `milkweed.plan_conversion`.
        """
        rules = MonarchConfig(self.nblocks, self.rank) if self.rules is None else self.rules
        rules = default_rules(rules) if isinstance(rules, LayerConfig) else rules
        return plan_conversion(model, rules, self.calibration, tokens=None)

    def to_dict(self) -> dict[str, Any]:
        """Give what belongs into ``config.json``: no batches and no functions.

        Returns:
            The layers of a converted model, else what the conversion will be.
        """
        found: dict[str, Any] = {"quant_method": METHOD, "format": FORMAT, "milkweed": __version__}
        return found | ({"layers": copy.deepcopy(self.layers)} if self.layers else self._choice())

    def _choice(self) -> dict[str, Any]:
        return {"nblocks": self.nblocks} | ({} if self.rank is None else {"rank": self.rank})

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from self.to_dict().items()

    def __deepcopy__(self, memo: dict[int, Any]) -> MilkweedConfig:
        # transformers copies configs when it loads and saves; batches may be many, or a generator.
        return copy.copy(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MilkweedConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]


class MilkweedQuantizer(HfQuantizer):
    """Rebuilds the layers of a converted model before its weights are read, or converts a dense one afterwards.

    Args:
        quantization_config: The `MilkweedConfig`.
        **options: transformers' own.

    Example:
        >>> from milkweed.convert.hub.native import MilkweedConfig, MilkweedQuantizer
        >>> MilkweedQuantizer(MilkweedConfig(nblocks=4)).is_serializable()
        True
    """

    requires_calibration = False
    quantization_config: MilkweedConfig

    def __init__(self, quantization_config: MilkweedConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self.report: ConversionReport | None = None
        self._dtype: torch.dtype | None = None

    def validate_environment(self, *args: Any, device_map: Any = None, **options: Any) -> None:
        """Refuse to convert what stays on the disk."""
        if not self.pre_quantized and isinstance(device_map, dict) and "disk" in device_map.values():
            raise ValueError(_ON_DISK)

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Read weights that are to be projected in float32: their projections would be rounded twice."""
        if self.pre_quantized or dtype not in _HALF:
            return dtype
        self._dtype = dtype
        return torch.float32

    def _process_model_before_weight_loading(self, model: Any, **options: Any) -> None:
        if not self.pre_quantized:
            return
        # Names are those in the model that was saved: with a head or without, as the class that is loaded may be.
        layers = {}
        recorded = recorded_names(self.quantization_config.layers)
        split_recorded_(model, [each for name in recorded for each in _variants(model, name)])
        for entry in self.quantization_config.layers:
            names = tuple(found for found in (_name_in(model, name) for name in entry["names"]) if found is not None)
            if names:
                layers[names] = _layer_like(model, {**entry, "names": list(names)})
        if self.quantization_config.layers and not layers:
            first = self.quantization_config.layers[0]["names"][0]
            raise ValueError(
                f"quantization_config of config.json names layers such as {first!r}, and {type(model).__name__} has "
                "none of them; load the folder with the class that it was saved from"
            )
        rebuild(model, layers)

    def _process_model_after_weight_loading(self, model: Any, **options: Any) -> Any:
        if not self.pre_quantized:
            if any(parameter.is_meta for parameter in model.parameters()):
                raise ValueError(_ON_DISK)
            self.report = convert_(model, self.quantization_config.plan(model))
            self._cast(model)
        else:
            _check_filled(model)
        attach(model)
        return model

    def _cast(self, model: Any) -> None:
        """Cast what was read in float32, except what transformers keeps so."""
        if self._dtype is None:
            return
        kept = getattr(model, "_keep_in_fp32_modules_strict", None) or set()
        if self._dtype == torch.float16:
            kept = set(kept) | set(getattr(model, "_keep_in_fp32_modules", None) or set())
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and not kept & set(name.split(".")) and _is_stored(model, name):
                tensor.data = tensor.data.to(self._dtype)
        model.config.dtype = self._dtype

    def get_state_dict_and_metadata(self, model: Any) -> tuple[None, dict[str, str]]:
        """Bring the record in the config up to date, which is saved right after."""
        if not getattr(model, "_hf_peft_config_loaded", False):  # then only adapters are saved
            write_config(model, conversion_record(model, skeleton_of(model)))
        return None, {}

    def is_serializable(self) -> bool:
        """Tell transformers that such models can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Tell transformers that such models can be trained."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Tell transformers that all of their parameters can be trained, not only adapters."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Tell transformers that such models can be compiled."""
        return True

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        densify_(model)
        return model


def _check_filled(model: nn.Module) -> None:
    """Refuse structured layers for which a file holds no numbers: transformers warns, and leaves what memory holds."""
    tensors = {
        f"{names[0]}.{key}": value
        for layer, names in structured_layers(model).items()
        for key, value in layer.state_dict(keep_vars=True).items()
        if not value.is_meta  # on the disk
    }
    # By this mark transformers tells what it has read; before version 5 it has none.
    read = {name for name, value in tensors.items() if getattr(value, "_is_hf_initialized", False)}
    lost = sorted(tensors.keys() - read) if read else []
    if lost:
        raise ValueError(
            f"the weights hold no {lost[0]} of the shape that quantization_config of config.json gives it "
            f"({len(lost)} of {len(tensors)} tensors of converted layers are missing); restore the folder or write it "
            "again"
        )
    strange = next((name for name, value in tensors.items() if not value.is_floating_point()), None)
    if strange is not None:
        raise ValueError(f"{strange} is {tensors[strange].dtype}; factors are floating-point numbers; write it again")


_ON_DISK = (
    "quantization_config converts a model after its weights were read, but device_map leaves some on the disk; load it "
    "without disk offload and save it converted, which can then be loaded with any device_map"
)


def _name_in(model: Any, name: str) -> str | None:
    """The name of a layer in a model that may have a head around the one that was saved, or lack it."""
    for each in _variants(model, name):
        try:
            model.get_submodule(each)
        except AttributeError:
            continue
        return each
    return None


def _variants(model: Any, name: str) -> tuple[str, str, str]:
    prefix = f"{model.base_model_prefix}."
    return name, name.removeprefix(prefix), prefix + name


def _layer_like(model: nn.Module, entry: dict[str, Any]) -> nn.Module:
    """The layer of an entry on the meta device, of the mode that the dense one has."""
    old = model.get_submodule(entry["names"][0])
    for name in entry["names"]:
        check_size(model, name, entry["in_features"], sum(entry["out_features"]))
    layer = build_entry(entry)
    if entry["layers"][0]["name"] != "dense":
        mark(layer)
    return layer.train(old.training)


def _is_stored(model: nn.Module, name: str) -> bool:
    """Whether a tensor is a parameter or a buffer that is saved; others are tables, which transformers keeps wide."""
    owner, _, leaf = name.rpartition(".")
    return leaf not in model.get_submodule(owner)._non_persistent_buffers_set


def _register() -> None:
    if METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantization_config(METHOD)(MilkweedConfig)
        auto.register_quantizer(METHOD)(cast(Any, MilkweedQuantizer))


_register()
