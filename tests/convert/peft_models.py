"""Converted models for tests of PEFT, their dense twins, and adapters that are not zero."""

import copy

import pytest
import torch
from tests.convert.families import batches, build, output

import milkweed as mw
from milkweed.convert.record import structured_layers

peft = pytest.importorskip("peft")

# peft asks transformers for a name that transformers has deprecated.
QUIET = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
RULES = {"re:.*(lm_head|pooler|classifier).*": None, "re:.*": mw.MonarchConfig(4)}


def converted(family="bert", rules=None):
    """A tiny model whose linear layers are structured, except the head, and a batch."""
    model = build(family)
    mw.convert_(model, rules or RULES)
    return model, batches(family)[0]


def marked(model):
    """With the one number under a dense weight's name that converted layers keep in files."""
    for layer in structured_layers(model):
        if not hasattr(layer, "weight"):
            layer.register_buffer("weight", torch.zeros(1))
    return model


def dense_twin(model):
    """The same numbers in dense layers, without adapters."""
    twin = copy.deepcopy(model)
    mw.densify_(twin)
    return twin


def stirred(model, scale=0.2):
    """Adapters as after training, not zero."""
    generator = torch.Generator().manual_seed(7)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.data = scale * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model.eval()


def adapted(model, config, **options):
    return stirred(peft.get_peft_model(copy.deepcopy(model), copy.deepcopy(config), **options))


def trained(model, batch, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch)[0].float().pow(3).mean().backward()
        optimizer.step()
    return model


def structured_names(model):
    return {name for names in structured_layers(model).values() for name in names}


__all__ = [
    "QUIET",
    "RULES",
    "adapted",
    "batches",
    "build",
    "converted",
    "dense_twin",
    "marked",
    "output",
    "peft",
    "stirred",
    "structured_names",
    "trained",
]
