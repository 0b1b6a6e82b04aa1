"""What every model does at the edges: numbers that are none, and batches without sequences."""

import pytest
import torch
from tests.contracts.sequence_layer import check_compiled_empty_batch, check_empty_batch, check_past_is_kept

from milkweed import models

L, D = 64, 16
LAYERS = {
    "s4": {},
    "s4d": {},
    "long_conv": {"l_max": L},
    "causal_monarch": {"seq_len": L},
}


def sequence_model(layer, **options):
    return models.SequenceModel(8, 5, d_model=D, depth=2, layer={"name": layer} | LAYERS[layer], **options).eval()


def m2_gpt(mixer):
    return models.M2Gpt(11, 11, length=L, d_model=D, depth=2, heads=2, mixer=mixer).eval()


@pytest.mark.parametrize("layer", LAYERS)
def test_sequence_models_keep_the_past(layer):
    check_past_is_kept(sequence_model(layer, pooling="none"), torch.randn(3, L, 8))


def test_sashimi_keeps_the_past():
    model = models.Sashimi(8, 5, d_model=D, depth=2, pool=(2, 2), encoder="linear").eval()
    check_past_is_kept(model, torch.randn(3, L, 8))


@pytest.mark.parametrize("mixer", ["long_conv", "causal_monarch"])
def test_m2_gpt_keeps_the_past_of_a_token_whose_embedding_is_no_number(mixer):
    model = m2_gpt(mixer)
    tokens = torch.randint(10, (2, L))
    with torch.no_grad():
        clean = model(tokens)[..., :10]
        broken = tokens.clone()
        broken[1, 30] = 10
        next(p for p in model.parameters() if p.shape[0] >= 11 and p.ndim == 2)[10] = torch.nan
        y = model(broken)[..., :10]  # the last logit is a product with that embedding
    torch.testing.assert_close(y[0], clean[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(y[1, :30], clean[1, :30], rtol=0, atol=1e-4)
    assert y[1, 30].isnan().any()


MODELS = {
    **{f"sequence model of {layer}": (lambda layer=layer: sequence_model(layer), (L, 8)) for layer in LAYERS},
    "every output": (lambda: sequence_model("s4d", pooling="none"), (L, 8)),
    "the last output": (lambda: sequence_model("s4d", pooling="last"), (L, 8)),
    "sashimi": (lambda: models.Sashimi(8, 5, d_model=D, depth=2, pool=(2, 2)), (L,)),
    "m2_gpt": (lambda: m2_gpt("long_conv"), (L,)),
    "m2_gpt of mixers": (lambda: m2_gpt("causal_monarch"), (L,)),
    "m2_bert": (lambda: models.M2Bert(50, length=32, d_model=D, depth=2, nblocks=4), (32,)),
    "m2_vit": (lambda: models.M2Vit(3, 4, size=(16, 16), patch=4, d_model=D, depth=2, nblocks=4), (3, 16, 16)),
    "mlp_mixer": (lambda: models.MlpMixer(8, 5, length=16, d_model=D, depth=2), (16, 8)),
    "linear_memory": (lambda: models.LinearMemory(8, 5), (L, 8)),
    "gpt2": (lambda: models.Gpt2(11, 11, length=L, d_model=D, depth=2, heads=2), (L,)),
}


def model_and_inputs(kind):
    if kind == "gpt2":
        pytest.importorskip("transformers")
    build, shape = MODELS[kind]
    return build(), torch.randint(5, (1, *shape)) if len(shape) == 1 else torch.randn(1, *shape)


@pytest.mark.parametrize("kind", MODELS)
def test_empty_batches(kind):
    check_empty_batch(*model_and_inputs(kind))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", MODELS)
def test_compiled_empty_batches(kind):
    check_compiled_empty_batch(*model_and_inputs(kind))
