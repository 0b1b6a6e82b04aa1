"""Right-padded batches: whatever the padding holds, outputs, losses and gradients are those of zero padding."""

import copy

import pytest
import torch

from milkweed.models import LinearMemory, M2Bert, M2Gpt, MlpMixer, Sashimi, SequenceModel
from milkweed.nn import SequenceNorm
from milkweed.nn.lengths import mean_of_steps, valid_steps, without_padding

LENGTHS = torch.tensor([12, 5, 1])
LAYERS = {
    "causal_monarch": {"seq_len": 12},
    "gated_mixer": {"l_max": 12, "bidirectional": True},
    "long_conv": {"l_max": 12, "gate": True},
    "monarch_mixer": {"seq_len": 12},
    "s4": {"d_state": 4},
    "s4d": {"d_state": 4, "bidirectional": True, "gate": True},
}
FEATURES = {
    **{
        f"sequence-{name}-{norm}-{pooling}": lambda name=name, norm=norm, pooling=pooling: SequenceModel(
            3, 2, d_model=4, depth=2, layer={"name": name, **LAYERS[name]}, norm=norm, pooling=pooling
        )
        for name in LAYERS
        for norm in ("layer", "batch")
        for pooling in ("mean", "last", "none")
    },
    "sequence-postnorm": lambda: SequenceModel(3, 2, d_model=4, depth=2, norm="batch", prenorm=False, pooling="none"),
    "sashimi": lambda: Sashimi(3, 2, d_model=4, depth=1, pool=[2], encoder="linear"),
    "mlp_mixer": lambda: MlpMixer(3, 2, 12, d_model=4, depth=1),
    "memory": lambda: LinearMemory(3, 2, d_model=4, layer={"name": "s4", "d_state": 4}),
    "memory-state": lambda: LinearMemory(3, 2, d_model=4, layer={"name": "s4", "d_state": 4}, readout="state"),
}
TOKENS = {
    "sequence": lambda: SequenceModel(7, 2, d_model=4, depth=1, encoder="embedding", layer={"name": "s4d"}),
    "sashimi": lambda: Sashimi(7, 2, d_model=4, depth=1, pool=[2]),
    "m2_bert": lambda: M2Bert(7, d_model=8, depth=1, length=12),
    "m2_gpt": lambda: M2Gpt(7, 7, length=12, d_model=8, depth=1, heads=2),
}


def valid_part(y, lengths):
    return y if y.ndim == 2 else y.masked_fill(~valid_steps(lengths, y.shape[1])[..., None], 0)


def trained_on(model, inputs, lengths):
    """Outputs on valid steps, gradients and buffers after one pass in training."""
    model = copy.deepcopy(model).train()
    torch.manual_seed(1)  # of dropout
    y = valid_part(model(inputs, lengths), lengths)
    y.square().sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]


@pytest.mark.sampled
@pytest.mark.parametrize("case", FEATURES)
@pytest.mark.parametrize("fill", [float("nan"), float("inf"), 1e3])
def test_features(case, fill):
    torch.manual_seed(0)
    model, u = FEATURES[case](), torch.randn(3, 12, 3)
    zero = without_padding(u, LENGTHS)
    filled = u.masked_fill(~valid_steps(LENGTHS, 12)[..., None], fill)
    for found, expected in zip(trained_on(model, filled, LENGTHS), trained_on(model, zero, LENGTHS), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.sampled
@pytest.mark.parametrize("case", TOKENS)
@pytest.mark.parametrize("fill", [-100, 6, 10_000])
def test_tokens(case, fill):
    torch.manual_seed(0)
    model, tokens = TOKENS[case](), torch.randint(7, (3, 12))
    padding = ~valid_steps(LENGTHS, 12)
    found = trained_on(model, tokens.masked_fill(padding, fill), LENGTHS)
    for each, expected in zip(found, trained_on(model, tokens.masked_fill(padding, 0), LENGTHS), strict=True):
        assert torch.equal(each, expected)


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize(
    "case", ["sequence-s4d-layer-last", "sequence-long_conv-batch-mean", "sashimi", "memory-state"]
)
def test_any_integer_is_a_length(case, dtype):
    model, u = FEATURES[case](), torch.randn(3, 12, 3)
    for found, expected in zip(trained_on(model, u, LENGTHS.to(dtype)), trained_on(model, u, LENGTHS), strict=True):
        assert torch.equal(found, expected)


def test_small_integers_count_long_sequences():
    u = torch.randn(2, 300, 3)
    model = SequenceModel(3, 2, d_model=4, depth=1, layer={"name": "s4d", "d_state": 4}).eval()
    assert torch.equal(model(u, torch.tensor([200, 100], dtype=torch.uint8)), model(u, torch.tensor([200, 100])))
    assert torch.equal(model(u, torch.tensor([100, 100], dtype=torch.int8)), model(u, torch.tensor([100, 100])))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_of_valid_steps_is_that_of_their_list(momentum):
    torch.manual_seed(0)
    norm, x = SequenceNorm("batch", 4).double(), torch.randn(3, 12, 4, dtype=torch.float64)
    norm.norm.momentum = momentum
    torch.nn.init.normal_(norm.norm.weight), torch.nn.init.normal_(norm.norm.bias)
    plain = copy.deepcopy(norm.norm)
    valid = valid_steps(LENGTHS, 12)
    for _ in range(2):
        y, expected = norm(x, LENGTHS), plain(x[valid])
        torch.testing.assert_close(y[valid], expected)
        assert not y[~valid].any()
    for found, expected in zip(norm.norm.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(found, expected)


def test_mean_of_steps():
    x = torch.randn(3, 12, 4, dtype=torch.float64)
    expected = torch.stack([row[:length].mean(0) for row, length in zip(x, LENGTHS.tolist(), strict=True)])
    torch.testing.assert_close(mean_of_steps(x, LENGTHS), expected)
    torch.testing.assert_close(mean_of_steps(x), x.mean(1))
