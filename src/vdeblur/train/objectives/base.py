"""What a training minimises, as the loop sees it."""

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
    """Consecutive frames, cropped and augmented: blurry and sharp, uint8 (T, 3, H, W) RGB."""

    blurry: Tensor
    sharp: Tensor


class Objective(nn.Module, ABC):
    """The losses of a network over a batch of clips, and what is trained by them.

    network: what is validated, and kept as weights. numbers: see Recipe.numbers; choices: what those of them may be
    that are words. Parts that serve for the training alone, as a discriminator, are further modules; they are kept in
    the training's state. restores: that the network can be validated by what it restores; else the loss on held-out
    clips says how good it is. reaches_all: that each step gives gradients to all that is trained.

    Raises: UsageError for words that are none of the choices.
    """

    rules: ClassVar[Rules] = {}
    restores: ClassVar[bool] = True
    reaches_all: ClassVar[bool] = True

    def __init__(self, network: Network, numbers: Mapping[str, Any]) -> None:
        super().__init__()
        self.check(numbers)
        self.network = network
        self.numbers = numbers

    @classmethod
    def check(cls, numbers: Mapping[str, Any]) -> None:
        """Refuse words that mean nothing here.

        Raises: UsageError.
        """
        check_table({key: value for key, value in numbers.items() if key in cls.rules}, cls.rules, "loss")

    def initialise(self) -> None:
        """Draw the weights that the paper begins with, where the network's constructor does otherwise."""

    def prepare(self, clip: Clip, rng: numpy.random.Generator) -> Batch:
        """Give what a step needs of one clip, without the batch's axis; done by the loader's workers.

        What is uint8 travels to the device as it is; see unit_range. rng: the sample's own.
        """
        return {"blurry": clip.blurry, "sharp": clip.sharp}

    def turns(self, update: int) -> tuple[str, ...]:
        """Tell what is done with one batch at this update: a name of an optimiser for each of its steps, in order.

        The optimiser "network" is the recipe's table [optimiser], others are tables in it. An update is a step of
        "network", or a batch in whose turns it does not occur.
        """
        return ("network",)

    def parameters_of(self, optimiser: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Give the parameters that an optimiser trains, by the names that the recipe's rates are given for."""
        return self.network.named_parameters()

    @abstractmethod
    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Give the losses of a turn by name: "loss" is minimised, others are shown; and what the next turn is given.

        batch: prepare's, stacked, on the device: uint8 is 0 to 255. turn: its number within turns(update). carried:
        None in the first turn, without gradient in the others. All losses are scalars in float32, whatever the
        precision of the network.
        """


def unit_range(pictures: Tensor) -> Tensor:
    """Give uint8 pictures as float32 in [0, 1]."""
    return pictures.to(torch.float32) / 255
