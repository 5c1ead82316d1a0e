"""Temporal profiles for the page: one line of the picture, frame below frame, as DSTNet's Figure 9 shows.

In a steady video the profile is smooth; flicker shows as stripes, blur as smear.
"""

import numpy
import torch
from torch import Tensor

from vdeblur.bench.results import ProfilePictures
from vdeblur.look.page import picture_uri
from vdeblur.source.pictures import read_picture

LEAST_HEIGHT = 96  # pixels on the page: the rows of shorter sequences are repeated


class ProfileRows:
    """The middle line of each frame of a sequence, restored and sharp."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Tensor]] = {"profile": [], "profile-sharp": []}

    def add(self, restored: Tensor, sharp: Tensor) -> None:
        """Add a frame, uint8 (3, H, W) each."""
        for rows, picture in zip(self.rows.values(), (restored, sharp), strict=True):
            rows.append(picture[:, picture.shape[1] // 2].cpu())

    def pictures(self) -> dict[str, Tensor]:
        """Return both profiles, uint8 (3, T, W): time goes down."""
        return {kind: torch.stack(rows, 1) for kind, rows in self.rows.items() if rows}


def profile_uris(profile: ProfilePictures) -> tuple[str, str]:
    """Return the restored and the sharp profile as pictures for the page."""
    restored, sharp = (picture_uri(_enlarged(read_picture(path)[0].to_ndarray(format="rgb24"))) for path in (
        profile.restored, profile.sharp
    ))  # fmt: skip
    return restored, sharp


def _enlarged(picture: numpy.ndarray) -> numpy.ndarray:
    """Repeat the rows of a profile (T, W, 3) so that people see them."""
    return picture.repeat(-(-LEAST_HEIGHT // len(picture)), 0)
