"""Restore a file, then a clip of its frames as a tensor:  python examples/restore_clip.py IN OUT."""

import sys

import torch

import vdeblur

source, output = sys.argv[1:]
result = vdeblur.deblur(source, output, model="lite", strength=1.0)
print(f"{result.frames} frames in {result.seconds:.1f} s")

with vdeblur.open(source, frames=5) as video:
    blurry = torch.stack([frame.rgb() for frame in video])  # (T, 3, H, W), float32 in [0, 1]
model = vdeblur.load_model("lite")
sharp = model(blurry)
print(f"{model.name} changed pixels by {255 * (sharp - blurry).abs().mean():.2f} of 255 on average")
