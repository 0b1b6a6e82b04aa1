"""Which parameter is trained how."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float = 0.0, ssm_lr: float | None = None
) -> list[dict[str, Any]]:
    """Split a model's parameters into optimiser groups.

    A layer names its special parameters through a method ``parameter_roles() -> {name: role}``; nothing is marked on
    the parameters themselves, so the groups survive deepcopy, meta devices and sharding. Vectors (biases, norms,
    skips) are never decayed.

    Args:
        model: Any module; frozen parameters are left out.
        lr: Learning rate.
        weight_decay: For matrices.
        ssm_lr: Learning rate of state space parameters (role ``"ssm"``: log_dt, A), not decayed; by default the
            smaller of ``lr`` and 1e-3.

    Returns:
        Groups named ``decay``, ``no_decay`` and ``ssm`` as far as they have members, each with ``lr`` and
        ``weight_decay``, for any torch optimiser.

    Raises:
        ValueError: The model has nothing to train, or a layer names a parameter or role that does not exist.

    Source:
        S4 (arXiv 2111.00396), appendix on training: state space parameters at a lower rate and without decay.
    """
    roles: dict[int, str] = {}
    for module_name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        # Asked of the class: wrappers such as a compiled module hand on the attributes of what they wrap.
        named = module.parameter_roles() if hasattr(type(module), "parameter_roles") else {}
        for name, role in named.items():
            if name not in own or role != "ssm":
                raise ValueError(f"{module_name or type(module).__name__} names parameter {name!r} with role {role!r}")
            roles[id(own[name])] = role
    members: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": [], "ssm": []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            members[roles.get(id(parameter), "decay" if parameter.ndim > 1 else "no_decay")].append(parameter)
    if not any(members.values()):
        raise ValueError(f"{type(model).__name__} has no parameter with requires_grad=True")
    rates = {"decay": lr, "no_decay": lr, "ssm": min(lr, 1e-3) if ssm_lr is None else ssm_lr}
    return [
        {"name": name, "params": group, "lr": rates[name], "weight_decay": weight_decay if name == "decay" else 0.0}
        for name, group in members.items()
        if group
    ]
