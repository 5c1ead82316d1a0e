"""Optimisers and schedules of the learning rate, from the tables [optimiser] and [schedule] of a recipe.

`build` gives an optimiser; `factor` what a schedule multiplies its rates by at an update; `Plateau` follows validation
scores, for the schedule that depends on them.

Keys of [optimiser]; a table in it, other than rates, is a further optimiser, which takes from [optimiser] what it
lacks:

- kind          "adam", "adamw", "radam" (with decoupled weight decay) or "muon" (Muon for matrices, AdamW for the rest)
- rate          the learning rate
- betas         of Adam and its kin; 0.9 and 0.999 if missing
- epsilon       likewise; 1e-8 if missing
- weight_decay  0 if missing
- rates         other rates, by prefix of the parameters' names, of which the longest counts; 0 freezes for good
- frozen        by prefix, too: the update before which a part is not trained
- clip          what the norm of all gradients together is limited to; not limited if missing
- matrix_rate   Muon's own rate
- matrices      Muon takes the convolutions' kernels whose names contain this
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vdeblur.errors import DeviceError, UsageError
from vdeblur.train.objectives.base import Objective

KINDS = ("adam", "adamw", "radam", "muon")
KEYS = ("kind", "rate", "betas", "epsilon", "weight_decay", "rates", "frozen", "clip", "matrix_rate", "matrices")
BY_PREFIX = ("rates", "frozen")
SCHEDULES = {
    "constant": (),
    "halve": ("every",),
    "steps": ("at", "factor"),
    "cosine": ("floor",),
    "restarts": ("periods", "floor"),
    "power": ("power",),
    "linear": ("warm_up",),
    "plateau": ("patience", "reductions"),
}
"""What each kind of schedule needs to be told, see factor and Plateau."""
SCHEDULES_MAY = {"restarts": ("weights",), "plateau": ("factor",)}


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a rate. start: the update that first changes them."""

    parameters: list[nn.Parameter]
    rate: float
    start: int


class Optimiser:
    """One or two of PyTorch's optimisers that step together, and what the gradients go through before.

    name: "network", or that of a table in [optimiser]. An update is a call of step; they are counted from 0, and kept
    in the state.
    """

    def __init__(
        self, name: str, parts: list[tuple[torch.optim.Optimizer, list[ParameterGroup]]], clip: float | None
    ) -> None:
        self.name = name
        self.parts = parts
        self.clip = clip
        self.update = 0

    def step(self, factor: float = 1.0, scaler: torch.amp.GradScaler | None = None) -> Tensor:
        """Update the parameters from their gradients at the rates times factor; give the gradients' norm, a scalar.

        scaler: what the loss was scaled with. It is brought up to date, and where gradients have overflowed nothing
        else happens. The norm is that before it is limited. Gradients remain; see zero_grad.

        Raises: DeviceError where gradients are not numbers without a scaler to blame; the parameters stay as they are.
        """
        self._hide_what_is_frozen()
        parameters = [p for _, groups in self.parts for group in groups for p in group.parameters]
        if scaler is not None:
            for part, _ in self.parts:
                scaler.unscale_(part)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        is_finite = bool(norm.isfinite())
        if scaler is None and not is_finite:
            raise DeviceError(
                f"the gradients of optimiser {self.name} are not numbers any more",
                "--resume goes on from the last kept state; with a lower --rate, or --set optimiser.clip=0.01",
            )
        if is_finite:
            if self.clip is not None:
                nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
            for part, groups in self.parts:
                for torch_group, group in zip(part.param_groups, groups, strict=True):
                    torch_group["lr"] = group.rate * factor
                part.step()
        if scaler is not None:
            scaler.update()
        self.update += 1
        return norm

    def _hide_what_is_frozen(self) -> None:
        """Drop gradients of what is not trained yet, so that neither norm nor moments know of them."""
        for _, groups in self.parts:
            for group in groups:
                if self.update < group.start:
                    for parameter in group.parameters:
                        parameter.grad = None

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part, _ in self.parts:
            part.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Give what load_state_dict takes: numbers, lists and tensors, which torch.load takes with weights_only."""
        return {"update": self.update, "parts": [part.state_dict() for part, _ in self.parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state_dict; rates, betas, decay and the like stay those of the recipe."""
        self.update = state["update"]
        for (part, _), saved in zip(self.parts, state["parts"], strict=True):
            # PyTorch would go back to what the groups were made with then.
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
        # Each matrix shares its kernel's storage; its gradient is handed over before each step.
        self.matrices = [matrix for group in parts[0][1] for matrix in group.parameters]

    def step(self, factor: float = 1.0, scaler: torch.amp.GradScaler | None = None) -> Tensor:
        """Do what Optimiser.step does."""
        for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
            matrix.grad = None if kernel.grad is None else _as_matrix(kernel.grad)
        return super().step(factor, scaler)

    def zero_grad(self) -> None:
        """Forget the gradients, the kernels' too."""
        super().zero_grad()
        for kernel in self.kernels:
            kernel.grad = None


def build(objective: Objective, name: str, table: Mapping[str, Any]) -> Optimiser:
    """Give the optimiser of that name of an objective.

    table: the recipe's [optimiser]. The objective must be on its device already. What has the rate 0 is no longer
    asked for gradients, which must be before the objective is wrapped for several devices.
    """
    settings = settings_of(table, name)
    named = dict(objective.parameters_of(name))
    # What the objective keeps from training anyway, as PVDNet's BIMNet, may be frozen once more.
    frozen = {key for key, _ in objective.network.named_parameters()} - named.keys()
    for prefix in (*settings["rates"], *settings["frozen"]):
        known = {*named, *frozen} if settings["rates"].get(prefix) == 0 else named
        if not any(_begins(key, prefix) for key in known):
            raise UsageError(f"the recipe speaks of {prefix}, of which the optimiser {name} trains nothing")
    inner = {key: p for key, p in named.items() if settings["kind"] == "muon" and _is_matrix(key, p, settings)}
    groups = _grouped({key: p for key, p in named.items() if key not in inner}, settings["rate"], settings)
    kernel_groups = _grouped(inner, settings["matrix_rate"], settings) if inner else []
    if not groups and not kernel_groups:
        raise UsageError(f"the recipe leaves the optimiser {name} nothing to train: all rates are 0")
    rest = [(_adam(groups, settings), groups)] if groups else []
    if not kernel_groups:
        return Optimiser(name, rest, settings["clip"])

    kernels = [kernel for group in kernel_groups for kernel in group.parameters]
    matrix_groups = [
        ParameterGroup([nn.Parameter(_as_matrix(kernel.data)) for kernel in group.parameters], group.rate, group.start)
        for group in kernel_groups
    ]
    # K. Jordan, 2024; PyTorch's own: makes each step's matrix nearly orthogonal
    muon = torch.optim.Muon(
        [{"params": group.parameters} for group in matrix_groups],
        lr=settings["matrix_rate"],
        weight_decay=settings["weight_decay"],
        adjust_lr_fn="match_rms_adamw",  # rates mean what AdamW's mean
    )
    return MatrixOptimiser(name, [(muon, matrix_groups), *rest], settings["clip"], kernels)


def settings_of(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Give all of the keys above for an optimiser; name: "network", or that of a table in [optimiser]."""
    own = {key: value for key, value in table.items() if key in BY_PREFIX or not isinstance(value, Mapping)}
    if name != "network":
        if not isinstance(table.get(name), Mapping):
            raise UsageError(f"the recipe has no [optimiser.{name}]")
        own = {**own, "rates": {}, "frozen": {}, **table[name]}  # these are for the network's names
    if unknown := sorted(own.keys() - KEYS):
        raise UsageError(f"the recipe's optimiser {name} has a key {unknown[0]}", f"known: {', '.join(KEYS)}")
    defaults = {"betas": (0.9, 0.999), "epsilon": 1e-8, "weight_decay": 0.0, "rates": {}, "frozen": {}, "clip": None}
    settings = {**defaults, **own}
    needed = ("rate", "matrix_rate", "matrices") if settings.get("kind") == "muon" else ("rate",)
    if missing := [key for key in needed if key not in settings]:
        raise UsageError(f"the recipe's optimiser {name} lacks {missing[0]}")
    if settings.get("kind") not in KINDS:
        raise UsageError(f"the recipe's optimiser {name} is of no known kind", f"choose from {', '.join(KINDS)}")
    return settings


def _is_matrix(name: str, parameter: nn.Parameter, settings: Mapping[str, Any]) -> bool:
    return settings["matrices"] in name and parameter.ndim == 4


def _as_matrix(kernel: Tensor) -> Tensor:
    """Give a kernel (out, in, h, w) as (out, in h w), of the same storage; laid out for channels last, (out, h w in).

    Muon does the same for any order of columns.
    """
    is_last = kernel.is_contiguous(memory_format=torch.channels_last)
    return (kernel.permute(0, 2, 3, 1) if is_last else kernel).view(len(kernel), -1)


def _grouped(named: Mapping[str, nn.Parameter], rate: float, settings: Mapping[str, Any]) -> list[ParameterGroup]:
    """Sort parameters by their rates and starts; those with the rate 0 are frozen for good, and left out."""
    sorted_out: dict[tuple[float, int], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        key = (_of_prefix(settings["rates"], name, rate), _of_prefix(settings["frozen"], name, 0))
        if key[0] == 0:
            parameter.requires_grad_(False)
        else:
            sorted_out.setdefault(key, []).append(parameter)
    return [ParameterGroup(parameters, *key) for key, parameters in sorted_out.items()]


def _of_prefix(by_prefix: Mapping[str, Any], name: str, default: Any) -> Any:
    """Give what is said of the longest prefix of a name."""
    prefix = max((prefix for prefix in by_prefix if _begins(name, prefix)), key=len, default=None)
    return default if prefix is None else by_prefix[prefix]


def _begins(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix}.")


def _adam(groups: Iterable[ParameterGroup], settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    parameters: Any = [{"params": group.parameters} for group in groups]
    common = {"eps": settings["epsilon"], "weight_decay": settings["weight_decay"]}
    rate, betas = settings["rate"], tuple(settings["betas"])
    if settings["kind"] == "adam":
        return torch.optim.Adam(parameters, rate, betas, **common)
    if settings["kind"] == "radam":
        return torch.optim.RAdam(parameters, rate, betas, decoupled_weight_decay=True, **common)
    return torch.optim.AdamW(parameters, rate, betas, **common)


def factor(table: Mapping[str, Any], update: int, iterations: int, rate: float) -> float:
    """Give what the rates are multiplied by at an update, counted from 0, of so many iterations.

    rate: that of [optimiser], since floors are rates. table: the recipe's [schedule], its kind one of

    - constant
    - halve      halved after `every` updates
    - steps      times `factor` at each of the updates `at`
    - cosine     half a cosine from the rate to `floor`, at the end
    - restarts   such a cosine in each of `periods`, lists of updates, from the period's weight in `weights` (1)
    - power      (1 - update / iterations) to the `power`
    - linear     a rise over `warm_up` updates, a tenth of all at most, then a straight line to 0 at the end
    - plateau    1: validations decide, see Plateau
    """
    kind = check_schedule(table)
    done = update / iterations
    if kind == "halve":
        return float(0.5 ** (update // table["every"]))
    if kind == "steps":
        return float(table["factor"] ** sum(update >= place for place in table["at"]))
    if kind == "cosine":
        return _half_cosine(min(done, 1.0), 1.0, table["floor"] / rate)
    if kind == "restarts":
        return _with_restarts(table, update, rate)
    if kind == "power":
        return float(max(1 - done, 0.0) ** table["power"])
    if kind == "linear":
        rise = max(min(table["warm_up"], iterations // 10), 1)
        return float(max(min((update + 1) / rise, 1 - done), 0.0))
    return 1.0


def check_schedule(table: Mapping[str, Any]) -> str:
    """Give the kind of a schedule that has all it needs, and nothing else.

    table: a recipe's [schedule].
    Raises: UsageError.
    """
    kind = str(table.get("kind"))
    if kind not in SCHEDULES:
        raise UsageError(f"the recipe has a schedule of kind {kind}", f"choose from {', '.join(SCHEDULES)}")
    if missing := [key for key in SCHEDULES[kind] if key not in table]:
        raise UsageError(f"the recipe's schedule, {kind}, lacks {missing[0]}")
    known = ("kind", *SCHEDULES[kind], *SCHEDULES_MAY.get(kind, ()))
    if unknown := sorted(table.keys() - set(known)):
        raise UsageError(f"the recipe's schedule, {kind}, has a key {unknown[0]}", f"known: {', '.join(known)}")
    return kind


def _half_cosine(done: float, first: float, last: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


def _with_restarts(table: Mapping[str, Any], update: int, rate: float) -> float:
    weights = table.get("weights", [1.0] * len(table["periods"]))
    floor = float(table["floor"] / rate)
    begin = 0
    for period, weight in zip(table["periods"], weights, strict=True):
        if update < begin + period:
            # As in BasicSR, the weight is that of the way down to the floor.
            return _half_cosine((update - begin) / period, floor + weight * (1 - floor), floor)
        begin += period
    return floor


class Plateau:
    """A schedule that looks at validations: while scores do not rise, rates fall, and in the end training stops.

    table: the recipe's [schedule]. patience: validations in a row, none above the best, that make a plateau; factor:
    what the rate is multiplied by (0.1) at each of the first `reductions` plateaus. At the next, training is finished.
    With other kinds of schedule it never is.
    """

    def __init__(self, table: Mapping[str, Any]) -> None:
        self._watches = check_schedule(table) == "plateau"
        self._table = table
        self.best: float | None = None
        self.waited = 0  # validations since the best
        self.plateaus = 0

    def observe(self, score: float) -> None:
        """Take note of a validation's score; more is better."""
        if self.best is None or score > self.best:
            self.best, self.waited = score, 0
            return
        self.waited += 1
        if self._watches and self.waited >= self._table["patience"]:
            self.waited = 0
            self.plateaus += 1

    @property
    def factor(self) -> float:
        """What the rates are multiplied by now, beside the function factor."""
        if not self._watches:
            return 1.0
        return float(self._table.get("factor", 0.1) ** min(self.plateaus, self._table["reductions"]))

    @property
    def finished(self) -> bool:
        """Whether nothing more is to be hoped for."""
        return self._watches and self.plateaus > self._table["reductions"]

    def state_dict(self) -> dict[str, Any]:
        """Give what load_state_dict takes."""
        return {"best": self.best, "waited": self.waited, "plateaus": self.plateaus}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state_dict."""
        self.best, self.waited, self.plateaus = state["best"], state["waited"], state["plateaus"]
