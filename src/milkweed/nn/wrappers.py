"""Modules that stand around others: compiled, parallel and averaged ones, seen through in one place."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

_P = ParamSpec("_P")
_R = TypeVar("_R")

# Where each wrapper keeps what it is around. A class is looked up only where its module has been imported: without that
# there is no object of it, and torch's compiler and Lightning are slow to import.
_WRAPPERS = (
    ("torch._dynamo.eval_frame", "OptimizedModule", "_orig_mod"),
    ("torch.nn.parallel.data_parallel", "DataParallel", "module"),
    ("torch.nn.parallel.distributed", "DistributedDataParallel", "module"),
    ("torch.optim.swa_utils", "AveragedModel", "module"),
    ("torch.distributed.fsdp", "FullyShardedDataParallel", "module"),
    ("torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "ActivationWrapper", "_checkpoint_wrapped_module"),
    ("lightning.fabric.wrappers", "_FabricModule", "_forward_module"),
    ("lightning_fabric.wrappers", "_FabricModule", "_forward_module"),
)
# These only call what they are around, and see whatever takes its place.
_TRANSPARENT = {"OptimizedModule", "DataParallel", "_FabricModule", "ActivationWrapper"}
_FLAT = "FullyShardedDataParallel"


def unwrapped(model: nn.Module) -> nn.Module:
    """Look through the wrappers around a model: what ``torch.compile``, parallel and averaged modules are around."""
    # What is inside may have modules with wrappers of their own.
    while (found := _wrapper(model)) is not None:
        model = getattr(model, found[1])
    return model


@contextmanager
def without_wrappers(model: nn.Module, changed_by: str | None = None) -> Iterator[nn.Module]:
    """Take all wrappers off a model for a while, those inside it included: its modules have their plain names."""
    # Modules that are compiled in place (``module.compile()``) run as they are written meanwhile, so that hooks are
    # seen. Afterwards every wrapper is where it was, but not around a module that was replaced: a new layer is not
    # compiled. ``changed_by`` names the function that replaces modules or parameters in the block, which is refused
    # where a wrapper holds them already (DistributedDataParallel, FSDP, AveragedModel), as flattened
    # parameters (FSDP1) always are.
    if changed_by is not None:
        _check_changeable(model, changed_by)
    inside = unwrapped(model)
    with ExitStack() as afterwards:
        _enter(model, inside, afterwards)
        left, seen = [inside], set()
        while left:
            module = left.pop()
            if module in seen:
                continue
            seen.add(module)
            _bare(module, afterwards)
            for name, child in module._modules.items():
                if child is None:
                    continue
                found = unwrapped(child)
                _enter(child, found, afterwards)
                if found is not child:
                    module._modules[name] = found
                    afterwards.callback(_put_back, module, name, found, child)
                left.append(found)
        yield inside


def through_wrappers(changes: bool, argument: str = "model") -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Let a function see its ``argument``, if that is a model, without wrappers; a model returned has them again."""

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        changed_by = cast(Any, function).__name__ if changes else None
        place = list(inspect.signature(function).parameters).index(argument)

        @functools.wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            model = args[place] if len(args) > place else kwargs.get(argument)
            if not isinstance(model, nn.Module):
                return function(*args, **kwargs)  # it says itself what it expects
            with without_wrappers(model, changed_by) as inside:
                if len(args) > place:
                    result = cast(Any, function)(*args[:place], inside, *args[place + 1 :], **kwargs)
                else:
                    result = cast(Any, function)(*args, **{**kwargs, argument: inside})
            return cast(_R, model) if result is inside else cast(_R, result)

        return call

    return decorate


def is_sharded(model: nn.Module) -> bool:
    """Tell whether a model has a ``DTensor``: its numbers are spread over processes, which have to gather them."""
    return any(is_distributed(tensor) for tensors in (model.parameters(), model.buffers()) for tensor in tensors)


@contextmanager
def one_writer(model: nn.Module) -> Iterator[bool]:
    """Let one process write what all have gathered, the others wait; yields whether this one writes."""
    if not is_sharded(model):
        yield True
        return
    try:
        yield torch.distributed.get_rank() == 0
    finally:
        torch.distributed.barrier()


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is spread over processes, which all have to ask for it; others stay as they are."""
    return cast(Tensor, cast(Any, tensor).full_tensor()) if is_distributed(tensor) else tensor


def is_distributed(tensor: Tensor) -> bool:
    """Tell whether a tensor is spread over processes, a ``DTensor``."""
    library = sys.modules.get("torch.distributed.tensor")
    return library is not None and isinstance(tensor, library.DTensor)


def _wrapper(module: nn.Module) -> tuple[str, str] | None:
    """The class of a wrapper, and its attribute that holds the module inside."""
    for library, name, attribute in _WRAPPERS:
        kind = getattr(sys.modules.get(library), name, None)
        if kind is not None and isinstance(module, kind):
            return name, attribute
    return None


def _around(module: nn.Module) -> Iterator[nn.Module]:
    """The wrappers around a module, from the outside."""
    while (found := _wrapper(module)) is not None:
        yield module
        module = getattr(module, found[1])


def _check_whole(wrapper: nn.Module) -> None:
    if (found := _wrapper(wrapper)) is not None and found[0] == _FLAT:
        raise TypeError(
            "model is wrapped in FullyShardedDataParallel, whose parameters are flat pieces; take "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, options=StateDictOptions("
            "full_state_dict=True)) into a model without wrapper and give that, or shard with fully_shard"
        )


def _check_changeable(model: nn.Module, function: str) -> None:
    """Refuse to change what a wrapper has noted: it would go on with parameters that are no longer the model's."""
    for module in (*_around(model), *unwrapped(model).modules()):
        found = _wrapper(module)
        if found is not None and found[0] not in _TRANSPARENT:
            raise TypeError(
                f"{function} changes parameters that the {found[0]} around the model holds already; call {function} on "
                "the model inside before it is wrapped"
            )
        if _plain_class(module) is not None or any(map(is_distributed, module.parameters(recurse=False))):
            raise TypeError(
                f"{function} changes the parameters, which are spread over processes; call it before fully_shard"
            )


def _plain_class(module: nn.Module) -> type[nn.Module] | None:
    """The class that a module had before it was sharded in place."""
    sharded = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    if sharded is None or not isinstance(module, sharded):
        return None
    return next(base for base in type(module).__bases__ if not issubclass(base, sharded))


def _bare(module: nn.Module, afterwards: ExitStack) -> None:
    """Undo what wraps a module in place: a compiled call, a class made for sharding."""
    compiled = module.__dict__.get("_compiled_call_impl")
    if compiled is not None:
        module._compiled_call_impl = None
        afterwards.callback(setattr, module, "_compiled_call_impl", compiled)
    plain = _plain_class(module)
    if plain is not None:
        afterwards.callback(setattr, module, "__class__", type(module))
        module.__class__ = plain


def _enter(model: nn.Module, inside: nn.Module, afterwards: ExitStack) -> None:
    """Let the wrappers around a module be in its mode afterwards, if that changes: training or evaluation."""
    before = inside.training
    for wrapper in _around(model):
        _check_whole(wrapper)

        def follow(wrapper: nn.Module = wrapper) -> None:
            if inside.training != before:
                wrapper.training = inside.training

        afterwards.callback(follow)


def _put_back(parent: nn.Module, name: str, inside: nn.Module, wrapper: nn.Module) -> None:
    if parent._modules.get(name) is inside:
        parent._modules[name] = wrapper
