"""What a model costs: parameters, FLOPs and memory, found on the meta device without computing anything."""

import contextlib
import copy
import itertools
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from milkweed.data.base import SequenceData
from milkweed.nn.wrappers import is_sharded, unwrapped


@dataclass(frozen=True)
class LayerCosts:
    """One module of a model."""

    name: str  # its own name; the model's class name for the root
    kind: str  # class name
    level: int  # depth below the root, 0 for the root
    parameters: int  # trainable parameters, those of its parts included
    flops: int  # FLOPs of one forward pass, those of its parts included


@dataclass(frozen=True)
class ModelCosts:
    """What a model costs on one batch."""

    layers: list[LayerCosts]  # all modules, depth first
    parameter_bytes: int  # parameters and buffers
    gradient_bytes: int  # gradients; AdamW's state is twice this
    activation_bytes: int  # tensors that autograd keeps between forward and backward; temporaries are not in it
    uncounted: list[str]  # custom operators that ran without a FLOP formula

    @property
    def training_bytes(self) -> int:
        """Memory of a training step with AdamW, without temporaries."""
        return self.parameter_bytes + 3 * self.gradient_bytes + self.activation_bytes


class CustomOperators(TorchDispatchMode):
    """Collects the operators of this library that have no FLOP formula."""

    def __init__(self, counted: set) -> None:
        super().__init__()
        self.counted = counted
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        packet = function._overloadpacket
        if function.namespace == "milkweed" and packet not in self.counted:
            self.names.add(str(packet))
        return function(*args, **(kwargs or {}))


def model_costs(model: nn.Module, inputs: torch.Tensor) -> ModelCosts:
    """Run one forward pass on the meta device: inputs (batch, length, features), or (batch, length) tokens."""
    lengths = torch.full(inputs.shape[:1], inputs.shape[1], device="meta")
    counter = FlopCounterMode(display=False)
    operators = CustomOperators(set(counter.flop_registry))
    with counter, operators, saved_tensors() as saved:
        model(inputs, lengths)
    own = {*storages(model.parameters()), *storages(model.buffers())}
    kept = {key: tensor for key, tensor in storages(saved).items() if key not in own}
    trainable = [p for p in model.parameters() if p.requires_grad]
    return ModelCosts(
        layers=list_layers(model, counter),
        parameter_bytes=sum(t.nbytes for t in [*model.parameters(), *model.buffers()]),
        gradient_bytes=sum(p.nbytes for p in trainable),
        activation_bytes=sum(t.untyped_storage().nbytes() for t in kept.values()),
        uncounted=sorted(operators.names),
    )


def example_inputs(data: SequenceData, batch_size: int) -> torch.Tensor:
    """Inputs of a data module without values: (batch, length, features), or (batch, length) tokens."""
    shape = (batch_size, data.length) if data.tokens else (batch_size, data.length, data.d_input)
    return torch.empty(shape, dtype=torch.long if data.tokens else None, device="meta")


def forward_flops(model: nn.Module, data: SequenceData) -> int | None:
    """FLOPs of a forward pass of one sample, by a copy without values; None of a model that cannot run so."""
    model = unwrapped(model)
    if is_sharded(model):
        return None
    try:
        return model_costs(on_meta(model).eval(), example_inputs(data, 1)).layers[0].flops
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):
        return None  # a model of the user's that looks at values, or is called in another way


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of a model without values, which takes no memory."""
    tensors = {}
    for each in itertools.chain(model.parameters(), model.buffers()):
        empty = torch.empty_like(each, device="meta")
        trained = isinstance(each, nn.Parameter)
        tensors[id(each)] = nn.Parameter(empty, requires_grad=each.requires_grad) if trained else empty
    return copy.deepcopy(model, tensors)


@contextlib.contextmanager
def saved_tensors():
    """Collect what autograd saves for the backward pass, in a list that fills."""
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


def storages(tensors) -> dict[int, torch.Tensor]:
    """One tensor for each storage, by its identity: on the meta device all data pointers are 0."""
    return {tensor.untyped_storage()._cdata: tensor for tensor in tensors}


def list_layers(model: nn.Module, counter: FlopCounterMode) -> list[LayerCosts]:
    """Put parameters and FLOPs beside every module, depth first."""
    counts = counter.get_flop_counts()
    root = type(model).__name__
    layers = []
    for path, module in model.named_modules():
        flops = sum(counts.get(f"{root}.{path}" if path else root, {}).values())
        parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
        level = path.count(".") + 1 if path else 0
        layers.append(LayerCosts(path.rpartition(".")[2] or root, type(module).__name__, level, parameters, flops))
    return layers
