"""Complex arithmetic on real pairs."""

import torch

from milkweed.ops import pairs


def test_exponentials_of_many_steps():
    a = torch.stack([-1e-6 * torch.rand(50), 3 * torch.rand(50)], -1).requires_grad_()
    steps = torch.tensor([0, 1, 1000, 2**20])[:, None]
    found = pairs.exp_of_steps(a, steps)
    exact = torch.view_as_real(torch.exp(torch.view_as_complex(a.detach().double()) * steps))
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-7)
    (gradient,) = torch.autograd.grad(found[..., 0].sum(), a)
    wide = a.detach().double().requires_grad_()
    (true,) = torch.autograd.grad(torch.exp(torch.view_as_complex(wide) * steps).real.sum(), wide)
    torch.testing.assert_close(gradient.double(), true, rtol=1e-5, atol=1)
