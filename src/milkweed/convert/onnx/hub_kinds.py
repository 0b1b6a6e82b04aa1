"""Inputs and outputs of transformers models, by the names that transformers and optimum have for them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from milkweed.convert.hub.conversion_progress import FolderError
from milkweed.convert.hub.inputs import first_line, known_tokens, longest_input
from milkweed.convert.onnx.graph import BATCH, LENGTH, SAMPLES, Called, Graph, Input, mask, numbers, tokens
from milkweed.convert.onnx.loading import Loaded

HIDDEN, SENTENCE = "last_hidden_state", "sentence_embedding"
# Not what a model is asked for, or structures of tensors.
LEFT_OUT = {"loss", "past_key_values", "hidden_states", "attentions", "cross_attentions", "encoder_last_hidden_state"}


def transformers_graphs(loaded: Loaded) -> list[Graph]:
    """The graphs of a model: one, or an encoder and a decoder."""
    model: Any = loaded.model
    config = model.config
    if loaded.stages:
        return [_sentence_graph(loaded)]
    if getattr(config, "is_encoder_decoder", False):
        return _two_graphs(model, loaded.name)
    inputs, limits = _inputs(model, loaded.name)
    options = {"use_cache": False} if _takes(model, "use_cache") else {}
    outputs = _outputs(model, Graph(model, inputs, (), limits), loaded.name, options)
    return [Graph(Called(model, tuple(inputs), outputs, **options), inputs, outputs, limits)]


def _inputs(model: Any, name: str) -> tuple[dict[str, Input], dict[str, int]]:
    """What a model is called with, and the largest sizes."""
    takes, config = inspect.signature(model.forward).parameters, model.config
    if "pixel_values" in takes and "input_ids" in takes and hasattr(config, "vision_config"):
        return _image_and_text(config)
    kind = model.main_input_name
    if kind == "pixel_values" and hasattr(config, "image_size"):
        sides = config.image_size
        height, width = (sides, sides) if isinstance(sides, int) else sides
        return {kind: numbers(BATCH, config.num_channels, height, width)}, {}
    if kind == "input_values":
        return {kind: numbers(BATCH, SAMPLES)}, {}
    if kind == "input_features" and hasattr(config, "num_mel_bins"):
        return {kind: _spectrogram(model)}, {}
    known = known_tokens(model)
    if kind != "input_ids" or known is None:
        raise FolderError(
            f"{name} reads {kind}, which milkweed does not know how to make up; give inputs={{{kind!r}: tensor}} of an "
            "example to export_onnx in Python"
        )
    return _text(model, known)


def _text(model: Any, known: int) -> tuple[dict[str, Input], dict[str, int]]:
    found = {"input_ids": tokens(known)}
    if _takes(model, "attention_mask"):
        found["attention_mask"] = mask()
    # RoBERTa and its kin have the argument, but a single type.
    if _takes(model, "token_type_ids") and (getattr(model.config, "type_vocab_size", 0) or 0) > 1:
        found["token_type_ids"] = tokens(2)
    limit = longest_input(model)
    return found, {} if limit is None else {LENGTH: limit}


def _spectrogram(model: Any) -> Input:
    # Whisper reads half a minute, padded with silence; its encoder halves the number of frames.
    return numbers(BATCH, model.config.num_mel_bins, 2 * model.config.max_source_positions)


def _image_and_text(config: Any) -> tuple[dict[str, Input], dict[str, int]]:
    text, vision = config.text_config, config.vision_config
    axes = ("text_batch_size", LENGTH)
    inputs = {
        "input_ids": tokens(text.vocab_size, *axes),
        "pixel_values": numbers("image_batch_size", vision.num_channels, vision.image_size, vision.image_size),
        "attention_mask": mask(*axes),
    }
    return inputs, {LENGTH: text.max_position_embeddings}


def _takes(model: Any, argument: str) -> bool:
    return argument in inspect.signature(model.forward).parameters


def _outputs(model: Any, graph: Graph, name: str, options: dict[str, Any]) -> tuple[str, ...]:
    """The tensors that a model returns, by name."""
    try:
        found = model(**graph.example(graph.traced()), **options)
    except Exception as error:  # of any model, so of any kind
        raise FolderError(f"{name} does not run on made-up inputs: {first_line(error)}") from error
    names = tuple(key for key, value in found.items() if isinstance(value, Tensor) and key not in LEFT_OUT)
    if not names:
        raise FolderError(f"{name} returns no tensors by name: {', '.join(found)}")
    return names


class _Sentences(nn.Module):
    """A transformer and the modules of sentence-transformers behind it."""

    def __init__(self, model: nn.Module, stages: tuple[nn.Module, ...], arguments: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.stages, self.arguments = model, nn.ModuleList(stages), arguments

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Give the tokens' vectors and the texts'."""
        given = dict(zip(self.arguments, inputs, strict=True))
        hidden = self.model(**given)[0]
        features = {**given, "token_embeddings": hidden}
        for stage in self.stages:
            features = stage(features)
        return hidden, features[SENTENCE]


def _sentence_graph(loaded: Loaded) -> Graph:
    inputs, limits = _inputs(loaded.model, loaded.name)
    module = _Sentences(loaded.model, loaded.stages, tuple(inputs)).eval()
    return Graph(module, inputs, (HIDDEN, SENTENCE), limits)


class _Decoder(nn.Module):
    """An encoder-decoder without its encoder."""

    def __init__(self, model: nn.Module, arguments: tuple[str, ...], output: str) -> None:
        super().__init__()
        self.model, self.arguments, self.output = model, arguments, output

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Decode; a bare model gives hidden states, others logits."""
        from transformers.modeling_outputs import BaseModelOutput

        given = dict(zip(self.arguments, inputs, strict=True))
        hidden = BaseModelOutput(last_hidden_state=given["encoder_hidden_states"])
        masked = {} if "encoder_attention_mask" not in given else {"attention_mask": given["encoder_attention_mask"]}
        found = self.model(encoder_outputs=hidden, decoder_input_ids=given["input_ids"], use_cache=False, **masked)
        return (found[self.output],)


def _two_graphs(model: Any, name: str) -> list[Graph]:
    """An encoder and a decoder, without a cache, as two graphs."""
    encoder = model.get_encoder()
    speech = model.main_input_name == "input_features"
    if speech:
        read: dict[str, Input] = {"input_features": _spectrogram(model)}
        limits: dict[str, int] = {}
    else:
        read, limits = _text(encoder, known_tokens(model) or model.config.vocab_size)
    first = Graph(Called(encoder, tuple(read), (HIDDEN,)), read, (HIDDEN,), limits, "encoder_")
    with torch.no_grad():
        hidden = first.module(*first.example(first.traced()).values())[0]
    steps: int | str = hidden.shape[1] if speech else f"encoder_{LENGTH}"
    inputs = {
        "input_ids": tokens(model.get_input_embeddings().num_embeddings),
        "encoder_hidden_states": numbers(BATCH, steps, hidden.shape[2]),
    }
    if "attention_mask" in read:
        inputs["encoder_attention_mask"] = mask(BATCH, f"encoder_{LENGTH}")
    output = "logits" if model.can_generate() else HIDDEN
    longest = getattr(model.config, "max_target_positions", None) or limits.get(LENGTH)
    decoder_limits = {LENGTH: longest} if longest else {}
    if LENGTH in limits:
        decoder_limits[f"encoder_{LENGTH}"] = limits[LENGTH]
    second = Graph(_Decoder(model, tuple(inputs), output), inputs, (output,), decoder_limits, "decoder_")
    return [first, second]
