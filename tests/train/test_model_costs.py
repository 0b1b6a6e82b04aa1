import torch
from torch import nn

from milkweed.train.model_costs import model_costs


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 5, bias=False)
        self.second = nn.Linear(5, 2)

    def forward(self, inputs, lengths):
        return self.second(torch.tanh(self.first(inputs))).mean(1)


def test_counts_are_exact_for_two_linear_layers():
    with torch.device("meta"):
        report = model_costs(Net(), torch.zeros(4, 7, 3))
    tokens = 4 * 7
    layers = {layer.name: layer for layer in report.layers}
    assert layers["first"].flops == 2 * tokens * 3 * 5
    assert layers["second"].flops == 2 * tokens * 5 * 2
    assert layers["Net"].flops == layers["first"].flops + layers["second"].flops
    assert layers["Net"].parameters == 15 + 12
    assert report.parameter_bytes == report.gradient_bytes == 4 * 27
    # The inputs for the first layer's gradient, and the tanh for its own and the second layer's.
    assert report.activation_bytes == 4 * tokens * (3 + 5)
    assert report.uncounted == []
