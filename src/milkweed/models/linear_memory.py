"""One state space layer between linear maps: what a linear system remembers, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from milkweed._arguments import checked
from milkweed._suggest import unknown
from milkweed.models.base import Model, check_inputs
from milkweed.nn import build_sequence_layer, check_spec
from milkweed.nn.filters.base import check_rate
from milkweed.nn.lengths import without_padding
from milkweed.nn.rates import rate_options

READOUTS = ("outputs", "state")
_LINEAR = {"activation": "none", "output": "none"}


class LinearMemory(Model):
    """Linear encoder → one state space layer → linear head, without norm and residual.

    Args:
        d_input: Features per step.
        d_output: Outputs per step, or per sequence with ``readout="state"``.
        d_model: Channels of the layer; if they are as many as the features, there is no encoder.
        layer: The layer as plain values; its activation and output layer are ``"none"`` unless it says otherwise.
        readout: What the head reads: the layer's ``"outputs"`` at every step, or its ``"state"`` after the last one,
            all d_model · d_state numbers of it. Then C and D serve nothing and are best frozen.

    Raises:
        ValueError: An option is unknown or out of range, or the layer has no state to read.

    Source:
        The model of the synthetic tasks of How to Train Your HiPPO (arXiv 2206.12037). There the head of the
        reconstruction reads 256 random readouts of the state; here the state itself.

    Example:
        >>> model = mw.models.LinearMemory(1, 3, layer={"name": "s4d", "d_state": 16})
        >>> model(torch.randn(2, 100, 1)).shape
        torch.Size([2, 100, 3])
    """

    @checked(but=("layer",))
    def __init__(
        self,
        d_input: int,
        d_output: int,
        d_model: int = 1,
        layer: Mapping[str, Any] | None = None,
        readout: str = "outputs",
    ) -> None:
        layer = _LINEAR | check_spec("layer", {"name": "s4"} if layer is None else layer)
        super().__init__(d_input=d_input, d_output=d_output, d_model=d_model, layer=layer, readout=readout)
        for name, value in (("d_input", d_input), ("d_output", d_output), ("d_model", d_model)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if readout not in READOUTS:
            raise ValueError(unknown("readout", readout, READOUTS))
        self.d_input, self.readout = d_input, readout
        self.encoder = nn.Identity() if d_input == d_model else nn.Linear(d_input, d_model)
        self.layer = build_sequence_layer(layer, d_model)
        if readout == "state" and layer["name"] not in {"s4", "s4d"}:
            raise ValueError(
                f"readout='state' needs a layer with a state of one size, s4 or s4d; got {layer['name']!r}"
            )
        if readout == "state" and layer.get("bidirectional"):
            raise ValueError("readout='state' needs a layer that only looks back; got bidirectional=True")
        system: Any = getattr(self.layer, "filter", None)
        per_channel = system.d_state if readout == "state" else 1
        self.head = nn.Linear(d_model * per_channel, d_output)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None, rate: float = 1.0) -> Tensor:
        """Run the network.

        Args:
            inputs: (B, L, d_input).
            lengths: (B,) integers, the valid steps of right-padded sequences; all of them by default.
            rate: Step length relative to training, for the layer; 2.0 reads signals sampled half as often.

        Returns:
            (B, L, d_output), or (B, d_output) with ``readout="state"``.

        Raises:
            ValueError: The rate is not above 0, or the layer has no other than 1.
        """
        check_rate(rate)
        check_inputs(inputs, self.d_input)
        x = self.encoder(without_padding(inputs, lengths))
        options = rate_options(self.layer, rate) | {"lengths": lengths}
        if self.readout == "outputs":
            return self.head(self.layer(x, **options))
        state = self.layer(x, **options, return_state=True)[1]
        return self.head(state.flatten(1).to(inputs.dtype))
