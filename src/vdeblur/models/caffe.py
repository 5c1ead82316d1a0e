"""Caffe models (.caffemodel): their layers' numbers, read without Caffe and without running anything.

A Caffe model is one protobuf message, NetParameter, of BVLC's caffe.proto. Only the wire format is needed to read it: a
message is a series of fields, each a number, a wire type and a value; what the numbers mean is listed here.

    NetParameter     1 name, 100 layer (repeated), in files before 2014 instead: 2 layers
    LayerParameter   1 name, 7 blobs (repeated); in those older files 4 name, 6 blobs
    BlobProto        7 shape, 5 data (float32), 8 double data; in older files instead of shape: 1 num, 2 channels,
                     3 height, 4 width
    BlobShape        1 dim (int64, repeated, packed or not)
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor

from vdeblur.errors import ModelError

SUFFIX = ".caffemodel"
LARGEST_BYTES = 1 << 30  # of a file; VGG-19, among the largest Caffe models, has 575 MB
LARGEST_COUNT = 1_000_000  # fields of a file, a run of floats counted once; flow-rnn's has about a thousand
LARGEST_FIELD = (1 << 29) - 1  # protobuf's limit of a field's number
MOST_AXES = 8
LONGEST_SIDE = 1 << 31  # of a blob
HEAD_BYTES = 512
# How files of other kinds begin that are named .caffemodel by mistake: their kind, and what to do.
OTHER_KINDS = (
    (rb"\x89HDF\r\n", "an HDF5 file", "use the .caffemodel; Caffe's .caffemodel.h5 has another form"),
    (rb"PK\x03\x04", "a zip file", "unpack it; or name it .pth if PyTorch wrote it"),
    (rb"\x80[\x02-\x05]", "a pickle file", "name it .pth if PyTorch wrote it"),
    (rb'[\s\S]{6}\0\0\{"', "a safetensors file", "name it .safetensors"),
    (rb"\x1f\x8b", "a gzip file", "unpack it"),
    (
        rb"(\s|#[^\n]*\n)*(name|layers?|input|input_\w+|state|force_backward)\s*[:{]",
        "a .prototxt, a network's definition as text",
        "use the .caffemodel, which holds the weights",
    ),
)
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
NET_NAME, OLD_LAYERS, LAYERS = 1, 2, 100
LAYER_FIELDS = {LAYERS: (1, 7), OLD_LAYERS: (4, 6)}  # of a layer: the numbers of its name and its blobs
BLOB_DATA, BLOB_SHAPE, BLOB_DOUBLES, OLD_AXES = 5, 7, 8, (1, 2, 3, 4)

Field = tuple[int, int, int | memoryview]  # number, wire type, value


class CaffeError(ValueError):
    """A file is not a whole Caffe model, or holds what this reader refuses."""


@dataclass(frozen=True)
class CaffeModel:
    """A Caffe model. name: of its network. layers: the blobs of each layer that has some, by the layer's name."""

    name: str
    layers: dict[str, list[Tensor]]


def looks_like_caffe(head: bytes) -> bool:
    """Return whether a file begins like a Caffe model: with the network's name, then a layer or an input.

    head: the file's first bytes, some hundreds.
    """
    if len(head) < 3 or head[0] != NET_NAME << 3 | BYTES or head[1] >= 0x80:
        return False
    name, rest = head[2 : 2 + head[1]], head[2 + head[1] :]
    return name.isascii() and name.decode("ascii").isprintable() and rest.startswith((b"\xa2\x06", b"\x12", b"\x1a"))


def read_caffe(path: Path) -> CaffeModel:
    """Read the blobs of a Caffe model as float32 tensors of the stored shapes.

    Raises: CaffeError saying what is wrong; ModelError naming the kind of a file that is none; OSError.
    """
    _refuse_other_kinds(path)
    if path.stat().st_size > LARGEST_BYTES:
        raise CaffeError(f"it is larger than {LARGEST_BYTES >> 20} MiB")
    fields = _Fields()
    name, layers = "", {}
    for number, wire, value in fields.of(memoryview(path.read_bytes())):
        if number == NET_NAME and wire == BYTES:
            name = _text(value)
        elif number in LAYER_FIELDS and wire == BYTES:
            layer, blobs = _read_layer(value, *LAYER_FIELDS[number], fields)
            if layer in layers and blobs:
                raise CaffeError(f"it has two layers {layer!r}")
            if blobs:
                layers[layer] = blobs
    if not layers:
        raise CaffeError("it has no layers with weights")
    return CaffeModel(name, layers)


def _refuse_other_kinds(path: Path) -> None:
    """Raise ModelError if a file begins like one of another kind; OSError."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    for beginning, kind, hint in OTHER_KINDS:
        if re.match(beginning, head):
            raise ModelError(f"{path} is {kind}, not a Caffe model", hint)


def _read_layer(
    message: int | memoryview, name_field: int, blobs_field: int, fields: "_Fields"
) -> tuple[str, list[Tensor]]:
    name, blobs = "", []
    for number, wire, value in fields.of(message):
        if number == name_field and wire == BYTES:
            name = _text(value)
        elif number == blobs_field and wire == BYTES:
            blobs.append(value)
    return name, [_read_blob(blob, f"blob {index} of layer {name!r}", fields) for index, blob in enumerate(blobs)]


def _read_blob(message: int | memoryview, place: str, fields: "_Fields") -> Tensor:
    shape: list[int] | None = None
    old_axes: dict[int, int] = {}
    chunks: list[memoryview] = []
    for number, wire, value in fields.of(message):
        if number == BLOB_SHAPE and wire == BYTES:
            shape = _read_shape(value, fields)
        elif number == BLOB_DATA and wire in (BYTES, FIXED32):  # packed, as Caffe writes it, or one by one
            chunks.append(_bytes(value))
        elif number == BLOB_DOUBLES:
            raise CaffeError(f"{place} holds float64 data, which Caffe writes only for models trained in it")
        elif number in OLD_AXES and wire == VARINT:
            old_axes[number] = _integer(value)
    if shape is None:
        shape = [old_axes.get(axis, 1) for axis in OLD_AXES] if old_axes else []
    for side in shape:
        if not 1 <= side <= LONGEST_SIDE:
            raise CaffeError(f"{place} has a side of {side - (1 << 64) if side >> 63 else side}")
    data = b"".join(chunks)
    if len(data) % 4 or len(data) // 4 != math.prod(shape):
        raise CaffeError(f"{place} is {'x'.join(map(str, shape)) or 'a single number'}, but holds {len(data)} bytes")
    return torch.from_numpy(numpy.frombuffer(data, "<f4").astype(numpy.float32).reshape(shape))


def _read_shape(message: int | memoryview, fields: "_Fields") -> list[int]:
    sides: list[int] = []
    for number, wire, value in fields.of(message):
        if number == 1 and wire == VARINT:
            sides.append(_integer(value))
        elif number == 1 and wire == BYTES:
            packed, place = _bytes(value), 0
            while place < len(packed) and len(sides) <= MOST_AXES:
                side, place = _varint(packed, place)
                sides.append(side)
        if len(sides) > MOST_AXES:
            raise CaffeError(f"it has a blob of more than {MOST_AXES} axes")
    return sides


class _Fields:
    """The fields of messages, counted over a whole file, so that a large file of tiny fields ends soon.

    Floats that a writer did not pack follow each other, each with its own key: such a run is one field, with the bytes
    of all of them.
    """

    def __init__(self) -> None:
        self.count = 0

    def of(self, message: int | memoryview) -> Iterator[Field]:
        """Yield the fields of a message. Raises: CaffeError if it is no whole protobuf message."""
        data, place = _bytes(message), 0
        while place < len(data):
            self.count += 1
            if self.count > LARGEST_COUNT:
                raise CaffeError("it has far more parts than any Caffe model")
            key, place = _varint(data, place)
            number, wire = key >> 3, key & 7
            if not 1 <= number <= LARGEST_FIELD:
                raise CaffeError("it is not a protobuf message")
            value: int | memoryview
            if wire == VARINT:
                value, place = _varint(data, place)
            else:
                if wire == BYTES:
                    length, place = _varint(data, place)
                elif wire in (FIXED32, FIXED64):
                    length = 4 if wire == FIXED32 else 8
                else:
                    raise CaffeError("it is not a protobuf message")
                if length > len(data) - place:
                    raise CaffeError("it is cut off, or not a protobuf message")
                value, place = data[place : place + length], place + length
                if wire == FIXED32 and key < 0x80:
                    more = _floats_from(data, place, key)
                    value = memoryview(bytes(value) + more)
                    place += len(more) // 4 * 5
            yield number, wire, value


def _floats_from(data: memoryview, place: int, key: int) -> bytes:
    """Return the bytes of the floats that follow at a place, each after its key of one byte."""
    floats, count = [], 1
    while True:  # a block of twice as many each time, so that short runs are short work
        block = numpy.frombuffer(data[place : place + 5 * count], numpy.uint8)
        records = block[: len(block) // 5 * 5].reshape(-1, 5)
        others = numpy.flatnonzero(records[:, 0] != key)
        length = int(others[0]) if len(others) else len(records)
        floats.append(records[:length, 1:].tobytes())
        if length < count:
            return b"".join(floats)
        place, count = place + 5 * length, 2 * count


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """Return the integer at a place, seven bits a byte, lowest first, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):  # at most ten bytes
        if place >= len(data):
            raise CaffeError("it is cut off")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise CaffeError("it is not a protobuf message")


def _bytes(value: int | memoryview) -> memoryview:
    assert isinstance(value, memoryview)
    return value


def _integer(value: int | memoryview) -> int:
    assert isinstance(value, int)
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)[:200]).decode("utf-8", "replace")
