"""Optimisers, from a recipe's table [optimiser], whose keys are the fields of OptimiserSettings."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from vdeblur.errors import DeviceError, UsageError
from vdeblur.train.objectives.base import Objective
from vdeblur.train.rules import BELOW_ONE, NOT_NEGATIVE, POSITIVE, RATE, TEXT, WHOLE, list_of, one_of

KINDS = ("adam", "adamw", "radam", "muon")
MUON_KEYS = ("matrix_rate", "matrices")
BY_PREFIX = ("rates", "frozen")


@dataclass(frozen=True)
class OptimiserSettings:
    """A recipe's [optimiser], or a table in it: a further optimiser, which takes from [optimiser] what it lacks.

    kind: "adam", "adamw", "radam" (with decoupled weight decay) or "muon" (Muon for matrices, AdamW for the rest).
    rates: other rates, by prefix of the parameters' names; the longest prefix counts, and 0 freezes for good.
    frozen: by prefix, too, the update before which a part is not trained. clip: limit of the norm of all gradients
    together; None or 0 for none. matrix_rate: Muon's own rate. matrices: Muon trains the convolutions' kernels whose
    names contain this.
    """

    kind: Annotated[str, one_of(KINDS)]
    rate: Annotated[float, RATE]
    betas: Annotated[Sequence[float], list_of(BELOW_ONE, 2)] = (0.9, 0.999)
    epsilon: Annotated[float, POSITIVE] = 1e-8
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    rates: Annotated[Mapping[str, float], {"*": BELOW_ONE}] = field(default_factory=dict)
    frozen: Annotated[Mapping[str, int], {"*": WHOLE}] = field(default_factory=dict)
    clip: Annotated[float | None, NOT_NEGATIVE] = None
    matrix_rate: Annotated[float | None, RATE] = None
    matrices: Annotated[str | None, TEXT] = None


def further_names(table: Mapping[str, Any]) -> list[str]:
    """Return the names of the further optimisers in a recipe's [optimiser]."""
    return [name for name, value in table.items() if isinstance(value, Mapping) and name not in BY_PREFIX]


def settings_of(table: Mapping[str, Any], name: str) -> OptimiserSettings:
    """Read the settings of an optimiser from a recipe's [optimiser]; name: "network", or that of a table in it.

    Raises: UsageError for an unknown kind or key, and where a needed key is missing.
    """
    own = {key: value for key, value in table.items() if key in BY_PREFIX or not isinstance(value, Mapping)}
    if name != "network":
        if name not in further_names(table):
            raise UsageError(f"the recipe has no [optimiser.{name}]")
        own = {**own, "rates": {}, "frozen": {}, **table[name]}  # the first optimiser's prefixes are the network's
    known = [key.name for key in fields(OptimiserSettings)]
    if unknown := sorted(own.keys() - set(known)):
        raise UsageError(f"the recipe's optimiser {name} has a key {unknown[0]}", f"known: {', '.join(known)}")
    needed = ("rate", *MUON_KEYS) if own.get("kind") == "muon" else ("rate",)
    if missing := [key for key in needed if key not in own]:
        raise UsageError(f"the recipe's optimiser {name} lacks {missing[0]}")
    if own.get("kind") not in KINDS:
        raise UsageError(f"the recipe's optimiser {name} is of no known kind", f"choose from {', '.join(KINDS)}")
    return OptimiserSettings(**own)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a rate. start: the first update that changes them."""

    parameters: list[nn.Parameter]
    rate: float
    start: int


class Optimiser:
    """One or two of PyTorch's optimisers that step together, after freezing and clipping.

    name: "network", or that of a table in [optimiser]. update: calls of step so far; part of the state.
    """

    def __init__(
        self, name: str, parts: list[tuple[torch.optim.Optimizer, list[ParameterGroup]]], clip: float | None
    ) -> None:
        self.name = name
        self.parts = parts
        self.clip = clip
        self.update = 0

    def step(self, factor: float = 1.0, scaler: torch.amp.GradScaler | None = None) -> Tensor:
        """Update the parameters from their gradients at the rates times factor; return the gradients' norm, a scalar.

        scaler: what the loss was scaled with. It is updated; if gradients overflowed, the parameters stay as they are.
        The norm is the one before clipping. Gradients remain; see zero_grad.

        Raises: DeviceError for NaN or infinite gradients without a scaler; the parameters stay as they are.
        """
        self._drop_frozen_gradients()
        parameters = [p for _, groups in self.parts for group in groups for p in group.parameters]
        if scaler is not None:
            for part, _ in self.parts:
                scaler.unscale_(part)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        is_finite = bool(norm.isfinite())
        if scaler is None and not is_finite:
            raise DeviceError(
                f"the gradients of optimiser {self.name} are NaN or infinite",
                "--resume continues from the last kept state; add a lower --rate, or --set optimiser.clip=0.01",
            )
        if is_finite:
            if self.clip:
                nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
            for part, groups in self.parts:
                for torch_group, group in zip(part.param_groups, groups, strict=True):
                    torch_group["lr"] = group.rate * factor
                part.step()
        if scaler is not None:
            scaler.update()
        self.update += 1
        return norm

    def _drop_frozen_gradients(self) -> None:
        """Drop the gradients of parameters that are still frozen, so that they enter neither norm nor moments."""
        for _, groups in self.parts:
            for group in groups:
                if self.update < group.start:
                    for parameter in group.parameters:
                        parameter.grad = None

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for part, _ in self.parts:
            part.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Return what load_state_dict reads: numbers, lists and tensors, which torch.load reads with weights_only."""
        return {"update": self.update, "parts": [part.state_dict() for part, _ in self.parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state_dict; rates, betas, decay and the like stay those of the recipe."""
        self.update = state["update"]
        for (part, _), saved in zip(self.parts, state["parts"], strict=True):
            # PyTorch would restore the groups' old settings.
            groups = [
                {**now, "params": then["params"]}
                for now, then in zip(part.param_groups, saved["param_groups"], strict=True)
            ]
            part.load_state_dict({**saved, "param_groups": groups})


class MatrixOptimiser(Optimiser):
    """An optimiser whose first part, Muon, sees convolutions' kernels (out, in, h, w) as matrices (out, in h w)."""

    def __init__(
        self,
        name: str,
        parts: list[tuple[torch.optim.Optimizer, list[ParameterGroup]]],
        clip: float | None,
        kernels: list[nn.Parameter],
    ) -> None:
        super().__init__(name, parts, clip)
        self.kernels = kernels
        # Each matrix shares its kernel's storage; step copies the gradient's reference first.
        self.matrices = [matrix for group in parts[0][1] for matrix in group.parameters]

    def step(self, factor: float = 1.0, scaler: torch.amp.GradScaler | None = None) -> Tensor:
        """Update as Optimiser.step does."""
        for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
            matrix.grad = None if kernel.grad is None else _as_matrix(kernel.grad)
        return super().step(factor, scaler)

    def zero_grad(self) -> None:
        """Drop the gradients, the kernels' too."""
        super().zero_grad()
        for kernel in self.kernels:
            kernel.grad = None


def build(objective: Objective, name: str, settings: OptimiserSettings) -> Optimiser:
    """Return an objective's optimiser of this name.

    The objective must be on its device already. Parameters with the rate 0 no longer require gradients, so call this
    before the objective is wrapped for several devices.

    Raises: UsageError where a prefix belongs to no parameter, and where nothing is left to train.
    """
    named = dict(objective.parameters_of(name))
    # Freezing again what the objective freezes anyway, as PVDNet's BIMNet, is no mistake.
    frozen = {key for key, _ in objective.network.named_parameters()} - named.keys()
    for prefix in (*settings.rates, *settings.frozen):
        known = {*named, *frozen} if settings.rates.get(prefix) == 0 else named
        if not any(_begins(key, prefix) for key in known):
            raise UsageError(f"the recipe names {prefix!r}, but the optimiser {name} trains no such parameters")
    kernels_by_name = {key: p for key, p in named.items() if _is_for_muon(key, p, settings)}
    groups = _grouped({key: p for key, p in named.items() if key not in kernels_by_name}, settings.rate, settings)
    kernel_groups = _grouped(kernels_by_name, settings.matrix_rate or 0.0, settings)
    if not groups and not kernel_groups:
        raise UsageError(f"the recipe leaves the optimiser {name} nothing to train: all rates are 0")
    rest = [(_adam(groups, settings), groups)] if groups else []
    if not kernel_groups:
        return Optimiser(name, rest, settings.clip)

    kernels = [kernel for group in kernel_groups for kernel in group.parameters]
    matrix_groups = [
        ParameterGroup([nn.Parameter(_as_matrix(kernel.data)) for kernel in group.parameters], group.rate, group.start)
        for group in kernel_groups
    ]
    # K. Jordan, 2024; PyTorch's own: makes each step's matrix nearly orthogonal
    muon = torch.optim.Muon(
        [{"params": group.parameters} for group in matrix_groups],
        lr=settings.matrix_rate or 0.0,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",  # rates mean what AdamW's mean
    )
    return MatrixOptimiser(name, [(muon, matrix_groups), *rest], settings.clip, kernels)


def _is_for_muon(name: str, parameter: nn.Parameter, settings: OptimiserSettings) -> bool:
    return settings.kind == "muon" and (settings.matrices or "") in name and parameter.ndim == 4


def _as_matrix(kernel: Tensor) -> Tensor:
    """Return a view of a kernel (out, in, h, w) as (out, in h w); for channels-last kernels as (out, h w in).

    The order of columns makes no difference to Muon.
    """
    is_last = kernel.is_contiguous(memory_format=torch.channels_last)
    return (kernel.permute(0, 2, 3, 1) if is_last else kernel).view(len(kernel), -1)


def _grouped(named: Mapping[str, nn.Parameter], rate: float, settings: OptimiserSettings) -> list[ParameterGroup]:
    """Group parameters by rate and start; freeze those with the rate 0 for good, and leave them out."""
    grouped: dict[tuple[float, int], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        key = (_of_prefix(settings.rates, name, rate), _of_prefix(settings.frozen, name, 0))
        if key[0] == 0:
            parameter.requires_grad_(False)
        else:
            grouped.setdefault(key, []).append(parameter)
    return [ParameterGroup(parameters, *key) for key, parameters in grouped.items()]


def _of_prefix(by_prefix: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return the value of the longest prefix of a name."""
    prefix = max((prefix for prefix in by_prefix if _begins(name, prefix)), key=len, default=None)
    return default if prefix is None else by_prefix[prefix]


def _begins(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix}.")


def _adam(groups: Iterable[ParameterGroup], settings: OptimiserSettings) -> torch.optim.Optimizer:
    parameters: Any = [{"params": group.parameters} for group in groups]
    first, second = settings.betas
    options: dict[str, Any] = {"eps": settings.epsilon, "weight_decay": settings.weight_decay}
    options |= {"lr": settings.rate, "betas": (first, second)}
    if settings.kind == "adam":
        return torch.optim.Adam(parameters, **options)
    if settings.kind == "radam":
        return torch.optim.RAdam(parameters, decoupled_weight_decay=True, **options)
    return torch.optim.AdamW(parameters, **options)
