"""The preview of a data set: one picture with the middle frames of some sequences."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdeblur.datasets.pictures import read_rgb, to_frame
from vdeblur.files import write_whole
from vdeblur.output.pictures import picture_bytes
from vdeblur.synth import footage
from vdeblur.synth.manifest import writing_pairs

COLUMNS, ROWS, CELL, GAP = 4, 3, (320, 320), 4  # pairs across and down, largest picture, pixels between pictures


def write_preview(path: Path, out: Path, sequences: list[dict[str, Any]]) -> None:
    """Write the middle frames of some sequences, blurry above sharp."""
    count = min(len(sequences), COLUMNS * ROWS)
    chosen = [sequences[index * len(sequences) // count] for index in range(count)]
    pairs = []
    for record in chosen:
        folder = out / record["split"] / record["name"]
        kind = next(kind for kind in ("blur", "blur_gamma") if (folder / kind).is_dir())
        name = f"{record['frames'] // 2 + 1:06}.png"
        pairs.append([_small(read_rgb(folder / version / name)) for version in (kind, "sharp")])
    width, height = (max(pair[0].shape[axis] for pair in pairs) for axis in (2, 1))
    columns, rows = min(count, COLUMNS), -(-count // COLUMNS)
    sheet = torch.full((3, rows * 2 * (height + GAP) + GAP, columns * (width + GAP) + GAP), 128, dtype=torch.uint8)
    for index, pair in enumerate(pairs):
        row, column = divmod(index, COLUMNS)
        for below, picture in enumerate(pair):
            top = GAP + (2 * row + below) * (height + GAP)
            left = GAP + column * (width + GAP)
            sheet[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    with writing_pairs(path):
        write_whole(path, picture_bytes(to_frame(sheet)))


def _small(picture: Tensor) -> Tensor:
    height, width = picture.shape[1:]
    scale = min(CELL[0] / width, CELL[1] / height, 1)
    return footage.reduced(picture, max(round(width * scale), 1), max(round(height * scale), 1))
