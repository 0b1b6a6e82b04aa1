"""Which parameter is trained how."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from milkweed._arguments import checked


@checked(but=("model",))
def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float = 0.0, ssm_lr: float | None = None
) -> list[dict[str, Any]]:
    """Split a model's parameters into optimiser groups.

    A layer names its special parameters through a method ``parameter_roles() -> {name: role}``, and learning rates
    relative to the model's through ``parameter_rates() -> {name: multiplier}``; parameters of which neither rate nor
    decay follow the model's through ``parameter_settings() -> {name: (lr, weight_decay)}``. Nothing is marked on the
    parameters themselves, so the groups survive deepcopy, meta devices and sharding. Vectors (biases, norms) and
    parameters of the role ``"no_decay"`` are never decayed.

    Args:
        model: Any module; untrained parameters are left out.
        lr: Learning rate.
        weight_decay: For matrices.
        ssm_lr: Learning rate of state space parameters (role ``"ssm"``: log_dt, A), not decayed; by default the
            smaller of ``lr`` and 1e-3.

    Returns:
        Groups named ``decay``, ``no_decay`` and ``ssm`` as far as they have members, and ``decay x4`` and the like for
        other rates, and ``lr 0.001 decay 0.1`` and the like for settings of layers, each with ``lr`` and
        ``weight_decay``, for any torch optimiser.

    Raises:
        ValueError: The model has nothing to train, a rate is negative or not finite, or a layer names a parameter or
            role that does not exist.
        TypeError: It is no module.

    Source:
        S4 (arXiv 2111.00396), appendix on training: state space parameters at a lower rate and without decay.

    Example:
        >>> groups = mw.nn.parameter_groups(mw.nn.S4D(8), lr=0.01, weight_decay=0.1)
        >>> optimizer = torch.optim.AdamW(groups)
        >>> [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        [(0.01, 0.1), (0.01, 0.0), (0.001, 0.0)]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, whose layers name their parameters; got {type(model).__name__}")
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("ssm_lr", 0.0 if ssm_lr is None else ssm_lr)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite; got {value}")
    roles, rates, settings = _named_by_layers(model)
    base = {"decay": lr, "no_decay": lr, "ssm": min(lr, 1e-3) if ssm_lr is None else ssm_lr}
    members: dict[tuple[str, float], list[nn.Parameter]] = {(name, 1.0): [] for name in base}
    fixed: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in settings:
            fixed.setdefault(settings[id(parameter)], []).append(parameter)
        else:
            role = roles.get(id(parameter), "decay" if parameter.ndim > 1 else "no_decay")
            members.setdefault((role, rates.get(id(parameter), 1.0)), []).append(parameter)
    if not any(members.values()) and not fixed:
        raise ValueError(f"{type(model).__name__} has no parameter with requires_grad=True")
    return [
        {
            "name": role if rate == 1 else f"{role} x{rate:g}",
            "params": group,
            "lr": base[role] * rate,
            "weight_decay": weight_decay if role == "decay" else 0.0,
        }
        for (role, rate), group in members.items()
        if group
    ] + [
        {"name": f"lr {rate:g} decay {decay:g}", "params": group, "lr": rate, "weight_decay": decay}
        for (rate, decay), group in fixed.items()
    ]


def _named_by_layers(
    model: nn.Module,
) -> tuple[dict[int, str], dict[int, float], dict[int, tuple[float, float]]]:
    """Roles, learning rate multipliers and whole settings by the parameter's id, as the layers name them."""
    roles: dict[int, str] = {}
    rates: dict[int, float] = {}
    settings: dict[int, tuple[float, float]] = {}
    for module_name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        where = module_name or type(module).__name__
        # Asked of the class: wrappers such as a compiled module hand on the attributes of what they wrap.
        if hasattr(type(module), "parameter_roles"):
            for name, role in module.parameter_roles().items():
                if name not in own or role not in {"ssm", "no_decay"}:
                    raise ValueError(
                        f"{where} names parameter {name!r} with role {role!r}; expected one of its own parameters, and "
                        "'ssm' or 'no_decay'"
                    )
                roles[id(own[name])] = role
        if hasattr(type(module), "parameter_rates"):
            for name, rate in module.parameter_rates().items():
                if name not in own or not rate > 0:
                    raise ValueError(
                        f"{where} names parameter {name!r} with learning rate multiplier {rate!r}; expected one of its "
                        "own parameters, and a number above 0"
                    )
                rates[id(own[name])] = rate
        if hasattr(type(module), "parameter_settings"):
            # A layer may speak for the plain layers that it is made of.
            own = dict(module.named_parameters())
            for name, (rate, decay) in module.parameter_settings().items():
                if name not in own or not rate > 0 or not decay >= 0:
                    raise ValueError(
                        f"{where} names parameter {name!r} with rate {rate!r} and decay {decay!r}; expected one of the "
                        "parameters in it, a rate above 0 and a decay of at least 0"
                    )
                settings[id(own[name])] = (rate, decay)
    return roles, rates, settings
