"""The interface between the training loop and the papers' losses."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor, nn

from vdeblur.networks.layers import Network
from vdeblur.train.rules import Rules, check_table

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Clip:
    """Consecutive frames, cropped and augmented: blurry and sharp, (T, 3, H, W) RGB.

    Both are uint8; with noise of [data] the blurry ones are float32, 0 to 255, neither clipped nor rounded.
    """

    blurry: Tensor
    sharp: Tensor


class Objective(nn.Module, ABC):
    """The losses of a network over a batch of clips.

    network: validated, and written as weights. numbers: see Recipe.numbers. rules: for the recipe's table [loss]. Parts
    that only the training needs, such as a discriminator, are further modules; the training's state includes them.
    defaults: of numbers that are not given. margin: the frames on each side of a sample beyond [data]'s `frames`; None
    for any. smallest_crop: least side of a crop.
    restores: whether validation measures what the network restores; if not, it measures the loss on held-out clips.
    reaches_all: whether each step gives gradients to all trained parameters.

    Raises: UsageError for numbers that break their rules.
    """

    rules: ClassVar[Rules] = {}
    defaults: ClassVar[Mapping[str, Any]] = {}
    margin: ClassVar[int | None] = None
    smallest_crop: ClassVar[int] = 1
    restores: ClassVar[bool] = True
    reaches_all: ClassVar[bool] = True

    def __init__(self, network: Network, numbers: Mapping[str, Any]) -> None:
        super().__init__()
        self.check(numbers)
        self.network = network
        self.numbers = {**self.defaults, **numbers}

    @classmethod
    def check(cls, numbers: Mapping[str, Any]) -> None:
        """Refuse numbers that break their rules.

        Raises: UsageError.
        """
        check_table({key: value for key, value in numbers.items() if key in cls.rules}, cls.rules, "loss")

    @classmethod
    def frames_of(cls, arguments: Mapping[str, Any], numbers: Mapping[str, Any]) -> int | None:
        """Return how many frames a sample must have; None for any number.

        arguments: of the network's constructor, all of them. numbers: the recipe's [loss].
        """
        return None

    @classmethod
    def check_variant(cls, arguments: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
        """Refuse a variant of the network that has nothing for this objective to train; as frames_of.

        Raises: UsageError.
        """

    @classmethod
    def updates_of(cls, numbers: Mapping[str, Any]) -> int:
        """Return the number of updates per batch; numbers: see Recipe.numbers."""
        return 1

    def is_preparing(self, update: int) -> bool:
        """Return whether the network is not trained yet at this update, so that validations cannot improve."""
        return False

    def initialise(self) -> None:
        """Draw the paper's initial weights, where they differ from the network constructor's."""

    def prepare(self, clip: Clip, rng: numpy.random.Generator) -> Batch:
        """Return the tensors that a step needs of one clip, without the batch's axis; called by the loader's workers.

        uint8 tensors are copied to the device as they are; see unit_range. rng: the sample's own.
        """
        return {"blurry": clip.blurry, "sharp": clip.sharp}

    def turns(self, update: int) -> tuple[str, ...]:
        """Return the turns of a batch at this update: the name of the optimiser that steps in each.

        The optimiser "network" is the recipe's table [optimiser], others are tables in it. An update is a step of
        "network", or a batch without such a step.
        """
        return ("network",)

    def parameters_of(self, optimiser: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Return the parameters that an optimiser trains, by the names whose prefixes the recipe's rates use."""
        return self.network.named_parameters()

    @abstractmethod
    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Return the losses of a turn by name, and a state for the next turn; "loss" is minimised, others are reported.

        batch: prepared clips, stacked, on the device; uint8 is 0 to 255. turn: its number within turns(update).
        carried: the state of the turn before, without gradient; None in the first turn. Losses are scalars in float32,
        whatever the network's precision.
        """


def unit_range(pictures: Tensor) -> Tensor:
    """Convert pictures of 0 to 255, uint8 or with noise float32, to float32 in [0, 1]."""
    return pictures.to(torch.float32) / 255
