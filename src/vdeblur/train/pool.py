"""Make a pool of synthetic training clips on disk, shard by shard, readable while it grows.

    python -m vdeblur.train.pool OUT_DIR --stills DIR --videos DIR --clips 4000

A shard is one .npy of uint8 (clips, 2, T, 3, side, side): blurry, then sharp. A shard appears whole or not at all,
and its contents are a function of the sources, the seed and its number. `--validation` makes the clips of the
held-out photographs instead (and of no video).
"""

import os
import time
from pathlib import Path

import av
import click
import numpy
import torch
from torch import Tensor

from vdeblur.train import synth

SHARD_CLIPS = 100
VIDEO_SHARE = 0.15  # of the clips that are averaged from video where there is any
SHORT_SIDE = 540  # videos are kept at this height at most; their clips are reduced by at least 2 from here
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"}


def read_still(path: Path) -> Tensor:
    """Decode a picture to uint8 (3, H, W) RGB."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        return torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1).contiguous()


def read_video(path: Path) -> Tensor:
    """Decode a whole video to uint8 (N, 3, H, W) RGB, reduced to a height of `SHORT_SIDE` where it is larger."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            scale = min(SHORT_SIDE / frame.height, 1.0)
            size = {"width": int(frame.width * scale) // 2 * 2, "height": int(frame.height * scale) // 2 * 2}
            small = frame.reformat(**size, format="rgb24", interpolation="AREA")
            frames.append(torch.from_numpy(small.to_ndarray()).permute(2, 0, 1))
    return torch.stack(frames)


def make_shard(
    number: int, seed: int, stills: list[Tensor], videos: list[Tensor], shape: synth.ClipShape
) -> numpy.ndarray:
    """Give shard `number`: uint8 (SHARD_CLIPS, 2, T, 3, side, side)."""
    shard = numpy.empty((SHARD_CLIPS, 2, shape.frames, 3, shape.side, shape.side), numpy.uint8)
    for index in range(SHARD_CLIPS):
        # Neighbouring seeds of the Mersenne twister give similar first draws, hence the detour.
        mixed = numpy.random.SeedSequence((seed, number, index)).generate_state(1, numpy.uint64)[0]
        generator = torch.Generator().manual_seed(int(mixed >> 1))
        if videos and synth.chance(generator, VIDEO_SHARE):
            video = videos[int(torch.randint(len(videos), (), generator=generator))]
            blurry, sharp = synth.average_clip(generator, video, shape)
        else:
            blurry, sharp = synth.render_clip(generator, stills, shape)
        shard[index, 0], shard[index, 1] = blurry.numpy(), sharp.numpy()
    return shard


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("out_dir", type=click.Path(path_type=Path, file_okay=False))
@click.option("--stills", required=True, type=click.Path(path_type=Path, exists=True), help="Folder of photographs.")
@click.option("--videos", type=click.Path(path_type=Path, exists=True), help="Folder of sharp videos.")
@click.option("--clips", default=4000, show_default=True, help="How many clips to make, rounded up to whole shards.")
@click.option("--validation", is_flag=True, help="Use the held-out photographs instead of the others.")
@click.option("--side", default=96, show_default=True, help="Side of the square frames in pixels.")
@click.option("--frames", default=5, show_default=True, help="Frames in a clip.")
@click.option("--first-shard", default=0, show_default=True, help="Begin here (to share the work between processes).")
@click.option("--seed", default=0, show_default=True)
def main(
    out_dir: Path,
    stills: Path,
    videos: Path | None,
    clips: int,
    validation: bool,
    side: int,
    frames: int,
    first_shard: int,
    seed: int,
) -> None:
    """Fill OUT_DIR with shards of blurry/sharp clips; shards already there are kept."""
    torch.set_num_threads(1)
    files = sorted(path for path in stills.rglob("*") if path.suffix.lower() in SUFFIXES)
    pictures = [read_still(path) for path in files if synth.is_held_out(path.name) == validation]
    pictures = [picture for picture in pictures if min(picture.shape[1:]) >= side * 2.4]
    takes = [] if validation or videos is None else [read_video(path) for path in sorted(videos.glob("*.mp4"))]
    click.echo(f"{len(pictures)} photographs, {len(takes)} videos", err=True)
    out_dir.mkdir(parents=True, exist_ok=True)
    for number in range(first_shard, first_shard + -(-clips // SHARD_CLIPS)):
        target = out_dir / f"shard-{number:04}.npy"
        if target.exists():
            continue
        start = time.monotonic()
        shard = make_shard(number, seed, pictures, takes, synth.ClipShape(frames, side))
        draft = target.with_suffix(".draft")
        with draft.open("wb") as file:
            numpy.save(file, shard)
        os.replace(draft, target)
        click.echo(f"{target.name}: {(time.monotonic() - start) / SHARD_CLIPS:.2f} s a clip", err=True)


if __name__ == "__main__":
    main()
