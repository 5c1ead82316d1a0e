"""Draw weights and frames for parity cases: the same numbers on every machine, from a seed.

A parity case compares a network of ours with its paper's reference implementation, both holding the same weights.
The weights are not stored: `state_dict` draws them from a manifest, which lists every key of the reference's
checkpoint with its shape, and a seed. `frames` draws the input. Only the reference's output is stored.
"""

import gzip
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy


def load_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest, {"keys": {name: {"shape": [...], "dtype": "float32", "gain": 1.0}}, ...}, or its .gz."""
    if path.is_file():
        return json.loads(path.read_text())
    return json.loads(gzip.decompress(path.with_name(f"{path.name}.gz").read_bytes()))


def state_dict(manifest: dict[str, Any], seed: int = 0) -> dict[str, numpy.ndarray]:
    """Draw every tensor of a checkpoint, each from its own generator, so that the order of keys does not matter.

    Weights of two or more dimensions: normal, scaled by gain / sqrt(fan_in), fan_in = prod(shape[1:]).
    One-dimensional "weight" (norms, PReLU): 1 + 0.1 * normal. Biases: 0.05 * normal * gain.
    BatchNorm's running_mean: 0.1 * normal; running_var: uniform in [0.5, 1.5); counters: 0.
    A key with "constant" has that value throughout; one with "values" has those.
    """
    tensors = {}
    for name, facts in manifest["keys"].items():
        shape = tuple(facts["shape"])
        dtype = numpy.dtype(facts.get("dtype", "float32"))
        gain = float(facts.get("gain", 1.0))
        generator = numpy.random.default_rng([seed, zlib.crc32(name.encode())])
        leaf = name.rsplit(".", 1)[-1]
        if "values" in facts:
            tensor = numpy.asarray(facts["values"]).reshape(shape)
        elif "constant" in facts:
            tensor = numpy.full(shape, facts["constant"])
        elif not numpy.issubdtype(dtype, numpy.floating):
            tensor = numpy.zeros(shape)
        elif leaf == "running_mean":
            tensor = 0.1 * generator.standard_normal(shape)
        elif leaf == "running_var":
            tensor = generator.uniform(0.5, 1.5, shape)
        elif len(shape) >= 2:
            tensor = generator.standard_normal(shape) * (gain / math.sqrt(max(1, math.prod(shape[1:]))))
        elif leaf == "weight":
            tensor = 1.0 + 0.1 * generator.standard_normal(shape)
        else:
            tensor = 0.05 * gain * generator.standard_normal(shape)
        tensors[name] = numpy.ascontiguousarray(tensor, dtype=dtype)
    return tensors


def frames(count: int, height: int, width: int, seed: int = 0, shift: float = 1.5) -> numpy.ndarray:
    """Draw a moving texture: uint8 RGB, (count, height, width, 3).

    Each channel is a sum of sinusoids that moves by `shift` pixels a frame in a drawn direction, under a second
    layer that moves more slowly elsewhere, so that neighbouring frames are related by real motion.
    """
    generator = numpy.random.default_rng([seed, count, height, width])
    y, x = numpy.mgrid[0:height, 0:width].astype(numpy.float64)
    angle = generator.uniform(0, 2 * math.pi, 2)
    drawn = numpy.empty((count, height, width, 3), numpy.uint8)
    waves = [
        (generator.uniform(-0.9, 0.9, 2), generator.uniform(0, 2 * math.pi), generator.uniform(0.3, 1.0, 3), layer)
        for layer in (0, 0, 0, 0, 0, 0, 1, 1, 1)
    ]
    for t in range(count):
        frame = numpy.zeros((height, width, 3))
        for (fy, fx), phase, colour, layer in waves:
            speed = shift if layer == 0 else 0.4 * shift
            dy, dx = speed * t * math.sin(angle[layer]), speed * t * math.cos(angle[layer])
            frame += numpy.sin(fy * (y - dy) + fx * (x - dx) + phase)[..., None] * colour
        drawn[t] = numpy.clip(numpy.rint(127.5 + 127.5 * frame / 3.0), 0, 255).astype(numpy.uint8)
    return drawn
