"""Scenes: cuts are found, and motion does not count as a cut."""

import torch
from torch.nn import functional as F

from vdeblur.restore.scenes import SceneDetector


def picture(seed: int, shift: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mood = torch.tensor([[0.1, 0.2, 0.4], [0.5, 0.2, 0.1], [0.3, 0.5, 0.4]])[seed % 3][None, :, None, None]
    coarse = mood + 0.5 * torch.rand(1, 3, 9, 24, generator=generator)
    wide = F.interpolate(coarse, (180, 960), mode="bicubic").clamp(0, 1)[0]
    return wide[..., shift : shift + 320]


def cuts(frames: list[torch.Tensor]) -> list[int]:
    detector = SceneDetector()
    return [index for index, frame in enumerate(frames) if detector.is_cut(frame)]


def test_cuts_are_found() -> None:
    frames = [picture(scene, 4 * k) for scene in (1, 2, 3) for k in range(8)]
    assert cuts(frames) == [8, 16]


def test_a_fast_pan_is_no_cut() -> None:
    assert cuts([picture(1, 40 * k) for k in range(16)]) == []


def test_a_fade_is_no_cut() -> None:
    assert cuts([picture(1, k) * (k / 24) for k in range(24)]) == []


def test_noise_and_stills_are_no_cuts() -> None:
    still = picture(5)
    assert cuts([(still + 0.1 * torch.randn(still.shape)).clamp(0, 1) for _ in range(8)]) == []
    assert cuts([still] * 8) == []
