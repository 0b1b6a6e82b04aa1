"""Steps so long that their squares are no float32."""

import pytest
import torch

from milkweed.nn import S4D


@pytest.mark.parametrize("log_dt", [40.0, 44.0, 60.0, 80.0])
@pytest.mark.parametrize("discretization", ["zoh", "bilinear", "dss"])
def test_outputs_and_gradients(discretization, log_dt):
    layer = S4D(3, 8, "lin", discretization=discretization)
    torch.nn.init.constant_(layer.filter.log_dt, log_dt)
    y = layer(torch.randn(2, 20, 3))
    y.sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    # With such a step the state follows the input: B̄ is -B/a, and twice that if the next step takes it back.
    if discretization == "bilinear":
        A = torch.complex(-torch.exp(layer.filter.A_real), layer.filter.A_imag).detach()
        torch.testing.assert_close(
            torch.view_as_complex(layer.filter.system().b.detach()), -2 / A, rtol=1e-4, atol=1e-4
        )
