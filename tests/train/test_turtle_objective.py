"""Turtle's objective: the mean over frames, with gradients through what is kept of earlier ones."""

import torch

from vdeblur.models import registry
from vdeblur.networks.turtle import Turtle
from vdeblur.train import recipes
from vdeblur.train.objectives.turtle import TurtleObjective


def test_the_loss_is_the_mean_over_frames_and_reaches_earlier_ones() -> None:
    torch.manual_seed(0)
    network = Turtle(8, (1, 1, 1), 2, (1, 1, 1), 1)
    recipe = recipes.load_recipe(registry.find_entry("turtle-bsd"))
    assert recipe.objective == "turtle"
    objective = TurtleObjective(network, {**recipe.numbers, "half_input": False})
    blurry, sharp = torch.randint(0, 256, (2, 1, 3, 3, 32, 64), dtype=torch.uint8)
    found = objective({"blurry": blurry, "sharp": sharp}, 0, 0, None)[0]["loss"]
    state, differences = None, []
    for frame, truth in zip(blurry.unbind(1), sharp.unbind(1), strict=True):
        restored, state = network(frame / 255, state)
        differences.append((restored - truth / 255).abs().mean())
    torch.testing.assert_close(found, torch.stack(differences).mean())
    first = (blurry[:, 0] / 255).requires_grad_()
    _, state = network(first, None)
    later, _ = network(blurry[:, 1] / 255, state)
    later.sum().backward()
    assert first.grad is not None
    assert first.grad.any()
