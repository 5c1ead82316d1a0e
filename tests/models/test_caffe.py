"""flow-rnn's released Caffe weights: read, converted and run; everything else of the kind is refused by name."""

import gzip
import io
import math
from pathlib import Path

import numpy
import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests import clips, parity
from tests.parity import Case
from vdeblur.errors import ExitStatus, ModelError
from vdeblur.models import caffe, released_flow_rnn, weights

FOLDER = "flow-rnn"
CASES = [
    Case(FOLDER, name)
    for name in sorted(
        {path.stem for root in (parity.PARITY, parity.STORED) for path in (root / FOLDER).glob("case-*.json")}
    )
]
SMALL = {"conv1": [torch.zeros(2, 3, 1, 1), torch.zeros(2)]}


def varint(value: int) -> bytes:
    low = []
    while value >= 0x80:
        low.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*low, value])


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def blob(tensor: Tensor, old: bool = False, data_field: int = 5) -> bytes:
    values = tensor.numpy().astype("<f4" if data_field == 5 else "<f8").tobytes()
    sides = tuple(tensor.shape)
    if old:
        shape = b"".join(number(index + 1, side) for index, side in enumerate((1,) * (4 - len(sides)) + sides))
    else:
        shape = message(7, message(1, b"".join(map(varint, sides))))
    return shape + message(data_field, values)


def caffe_model(layers: dict[str, list[Tensor]], old: bool = False, data_field: int = 5) -> bytes:
    """Write a Caffe model as Caffe does, with a layer without weights, as data and activations are."""
    layer_field, name_field, blobs_field, type_field = (2, 4, 6, 5) if old else (100, 1, 7, 2)
    kind = number(type_field, 4) if old else message(type_field, b"Convolution")
    written = [message(layer_field, message(name_field, b"relu1") + kind + message(3, b"conv1"))]
    for name, blobs in layers.items():
        content = message(name_field, name.encode()) + kind
        content += b"".join(message(blobs_field, blob(tensor, old, data_field)) for tensor in blobs)
        written.append(message(layer_field, content))
    return message(1, b"FlowNet2-s") + b"".join(written)


def layers_of(case: Case) -> dict[str, list[Tensor]]:
    """Return a case's blobs by layer, in the order of the released file."""
    layers: dict[str, list[Tensor]] = {}
    for key, tensor in case.tensors().items():
        layers.setdefault(key.rpartition(".")[0], []).append(tensor)
    return layers


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The weights of each case as a Caffe model, by the case's name."""
    folder = tmp_path_factory.mktemp("caffe")
    for case in CASES:
        (folder / f"{case.name}.caffemodel").write_bytes(caffe_model(layers_of(case)))
    return {case.name: folder / f"{case.name}.caffemodel" for case in CASES}


@pytest.mark.parametrize("case", parity.each(CASES))
def test_released_weights_import_and_restore_as_the_released_network(case: Case, released, vdeblur) -> None:
    result = vdeblur("models", "import", released[case.name], "--as", "flow-rnn")
    assert result.exit_code == 0, result.output
    network = weights.load_model("flow-rnn")
    frames = case.frames()
    restored = parity.restore(network, frames)[:-1]  # the release skips the last frame
    assert numpy.abs(restored - case.output()).max() <= case.tolerance
    current, following = parity.as_tensor(frames[:-1]), parity.as_tensor(frames[1:])
    with torch.inference_mode():
        flow2 = network.flows(current, following)[0].numpy()
    with numpy.load(case.directory / f"{case.name}.npz") as arrays:
        assert numpy.abs(flow2 - arrays["flow2"]).max() <= case.tolerance


@pytest.mark.parametrize("case", parity.each(CASES))
def test_run_restores_as_the_released_network(case: Case, released, vdeblur, tmp_path: Path) -> None:
    """From pictures to pictures, within one code value; the last frame has no reference."""
    frames = case.frames()
    (tmp_path / "in").mkdir()
    (tmp_path / "frames.rgb").write_bytes(frames.tobytes())
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size)
    clips.ffmpeg(*raw, "-i", tmp_path / "frames.rgb", tmp_path / "in" / "f%03d.png")
    assert vdeblur("models", "import", released[case.name], "--as", "flow-rnn").exit_code == 0
    options = ("-m", "flow-rnn", "-p", "fp32", "-d", "cpu", "--tile", "none", "--no-scene-detect", "--no-guard")
    result = vdeblur("run", tmp_path / "in", tmp_path / "out/", *options)
    assert result.exit_code == 0, result.output
    written = numpy.concatenate([clips.rgb(path) for path in sorted((tmp_path / "out").iterdir())])
    expected = numpy.rint(numpy.clip(case.output(), 0, 1) * 255)
    assert len(written) == len(frames)
    assert numpy.abs(written[:-1] - expected).max() <= 1


def test_a_clip_of_odd_size_is_restored(released, vdeblur, tmp_path: Path) -> None:
    clip = clips.make(tmp_path / "in.mp4", size="70x50", frames=3)
    options = ("-m", "flow-rnn", "--weights", released[CASES[0].name])
    result = vdeblur("run", clip, tmp_path / "out.mp4", *options)
    assert result.exit_code == 0, result.output
    assert clips.rgb(tmp_path / "out.mp4").shape == (3, 50, 70, 3)
    assert clips.psnr(clips.rgb(tmp_path / "out.mp4"), clips.rgb(clip)) < 40  # the drawn weights change it


def test_layers_get_their_names_and_axes() -> None:
    """By the numbers in the released axes, one layer of each rule."""
    layers = layers_of(CASES[0])
    state = released_flow_rnn.convert(caffe.CaffeModel("FlowNet2-s", layers))
    assert torch.equal(state["flow_part.conv1.weight"], layers["conv1"][0].transpose(2, 3))
    assert torch.equal(state["flow_part.conv1.bias"], layers["conv1"][1])
    predicted = layers["predict_conv2"][0].transpose(2, 3)
    assert torch.equal(state["flow_part.refine2.flow.weight"][0, -1], predicted[1, -2])
    assert torch.equal(state["flow_part.refine2.flow.bias"], layers["predict_conv2"][1].flip(0))
    upsampled = layers["upsample_flow6to5"][0].transpose(2, 3)
    assert torch.equal(state["flow_part.refine6.up.weight"][0, 1], upsampled[1, 0])
    assert torch.equal(state["flow_part.refine6.deconv.weight"], layers["deconv5"][0].transpose(2, 3))
    assert torch.equal(state["rnnw1.bias"][:24], layers["conv_rnnw2"][1][24:48])
    assert torch.equal(state["d_conv2.weight"][:, :24], layers["conv_rnne_2"][0].transpose(2, 3)[:, 48:72])
    assert torch.equal(state["d_deconv1.weight"][96:], layers["conv_rnnd_2"][0].transpose(2, 3)[96:])
    assert torch.equal(state["d_conv0.bias"], layers["conv_rnnd_1"][1])


def test_the_old_format_holds_the_same(tmp_path: Path) -> None:
    layers = layers_of(CASES[0])
    (tmp_path / "new.caffemodel").write_bytes(caffe_model(layers))
    (tmp_path / "old.caffemodel").write_bytes(caffe_model(layers, old=True))
    new, old = (released_flow_rnn.convert(caffe.read_caffe(tmp_path / f"{name}.caffemodel")) for name in ("new", "old"))
    assert new.keys() == old.keys()
    assert all(torch.equal(new[name], old[name]) for name in new)


def test_a_file_under_another_name_is_recognised(released, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(released[CASES[0].name].read_bytes())
    assert weights.load_model("flow-rnn", path).d_conv0.bias.shape == (3,)


def without(layers: dict[str, list[Tensor]], name: str) -> dict[str, list[Tensor]]:
    return {key: blobs for key, blobs in layers.items() if key != name}


def with_sides(sides: bytes, old: bool = False, data: bytes = b"") -> bytes:
    """Return a model of one blob. sides: dim of its shape, packed; or its fields num, channels, height and width."""
    content = (sides if old else message(7, message(1, sides))) + message(5, data)
    return message(100, message(1, b"conv1") + message(7, content))


def saved(state: Tensor, new: bool) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def broken(kind: str, layers: dict[str, list[Tensor]]) -> bytes:
    """Return a file with one fault."""
    whole = caffe_model(SMALL)
    match kind:
        case "a layer missing":
            return caffe_model(without(layers, "conv_rnnd_1"))
        case "an unknown layer":
            return caffe_model({**layers, "conv7": SMALL["conv1"]})
        case "another shape":
            return caffe_model({**layers, "conv2": [torch.zeros(48, 24, 3, 3), torch.zeros(48)]})
        case "a blob missing":
            return caffe_model({**layers, "conv2": layers["conv2"][:1]})
        case "another network":
            return caffe_model(SMALL)
        case "not a number":
            return caffe_model({**layers, "conv2": [layers["conv2"][0], torch.full((48,), math.nan)]})
        case "float64":
            return caffe_model(SMALL, data_field=8)
        case "cut off":
            return caffe_model(layers)[:-100]
        case "cut in a varint":
            return b"\x0a"
        case "fewer values than its shape":
            return whole.replace(message(1, varint(2)), message(1, varint(3)))
        case "a huge shape":
            return with_sides(varint(1 << 62) * 4, data=bytes(4))
        case "nothing times a huge side":
            return with_sides(varint(0) + varint(1 << 62))
        case "a side of nothing":
            return with_sides(varint(0))
        case "a negative side":
            return with_sides(varint(2**64 - 1), data=bytes(4))
        case "a negative side in the old form":
            return with_sides(number(1, 1) + number(2, 2**64 - 2), old=True, data=bytes(4))
        case "a huge side of nothing in the old form":
            return with_sides(number(1, 0) + number(2, 1 << 62), old=True)
        case "the longest sides":
            return with_sides(varint(1 << 31) * 8)
        case "many axes":
            return with_sides(b"\1" * 1000)
        case "no shape":
            return with_sides(b"", data=bytes(8))
        case "a huge length":
            return varint(100 << 3 | 2) + varint(1 << 63)
        case "a varint without end":
            return b"\x08" + b"\xff" * 20
        case "field 0":
            return number(0, 1) + whole
        case "an escape in a name":
            return caffe_model({**layers, "\x1b[2J\nconv": SMALL["conv1"]})
        case "a text as a blob":
            return message(100, message(1, b"conv1") + message(7, b"\x3a\x05hello"))
        case "HDF5":
            return b"\x89HDF\r\n\x1a\n" + bytes(500)
        case "a zip of PyTorch":
            return saved(SMALL["conv1"][0], new=True)
        case "a pickle of PyTorch":
            return saved(SMALL["conv1"][0], new=False)
        case "safetensors":
            return safetensors.torch.save({"a": SMALL["conv1"][0]})
        case "gzip":
            return gzip.compress(whole)
        case "prototxt":
            return b'# deploy\nname: "FlowNet2-s"\ninput: "data"\nlayer {\n  name: "conv1"\n}\n'
        case "twice":
            return whole + whole
        case "no weights":
            return message(1, b"net")
        case "groups":
            return b"\x0b\x0b\x0c\x0c"
        case "noise":
            return numpy.random.default_rng(0).bytes(5000)
        case "tiny fields":
            return number(3, 1) * (caffe.LARGEST_COUNT + 1)
        case _:
            return b""


FAULTS = {
    "a layer missing": "is a Caffe model named 'FlowNet2-s'*not the one of flow-rnn: 1 layer is missing, conv_rnnd_1 (",
    "an unknown layer": "1 unknown, conv7 (",
    "another shape": "layer conv2 has blobs of 48x24x3x3 and 48 instead of 48x24x5x5 and 48",
    "a blob missing": "layer conv2 has blobs of 48x24x5x5 instead of",
    "another network": "layers are missing, conv2 first",
    "not a number": "holds NaN",
    "float64": "is not a whole Caffe model*blob 0 of layer 'conv1' holds float64 data",
    "cut off": "it is cut off",
    "cut in a varint": "it is cut off",
    "fewer values than its shape": "blob 1 of layer 'conv1' is 3, but holds 8 bytes",
    "a huge shape": "blob 0 of layer 'conv1' has a side of 4611686018427387904",
    "nothing times a huge side": "blob 0 of layer 'conv1' has a side of 0",
    "a side of nothing": "blob 0 of layer 'conv1' has a side of 0",
    "a negative side": "blob 0 of layer 'conv1' has a side of -1",
    "a negative side in the old form": "blob 0 of layer 'conv1' has a side of -2",
    "a huge side of nothing in the old form": "blob 0 of layer 'conv1' has a side of 0",
    "the longest sides": "but holds 0 bytes",
    "no shape": "blob 0 of layer 'conv1' is a single number, but holds 8 bytes",
    "a huge length": "it is cut off",
    "a varint without end": "it is not a protobuf message",
    "field 0": "it is not a protobuf message",
    "an escape in a name": "1 unknown, ",
    "a text as a blob": "it is not a protobuf message",
    "HDF5": "x.caffemodel is an HDF5 file, not a Caffe model (use the .caffemodel",
    "a zip of PyTorch": "x.caffemodel is a zip file, not a Caffe model (unpack it; or name it .pth",
    "a pickle of PyTorch": "x.caffemodel is a pickle file, not a Caffe model (name it .pth",
    "safetensors": "x.caffemodel is a safetensors file, not a Caffe model (name it .safetensors",
    "gzip": "x.caffemodel is a gzip file, not a Caffe model (unpack it",
    "prototxt": "x.caffemodel is a .prototxt, a network's definition as text, not a Caffe model (use the .caffemodel",
    "many axes": "more than 8 axes",
    "twice": "it has two layers 'conv1'",
    "no weights": "it has no layers with weights",
    "groups": "it is not a protobuf message",
    "noise": "is not a whole Caffe model (.caffemodel, a network's weights as Caffe writes them): it ",
    "tiny fields": "it has far more parts than any Caffe model",
    "empty": "it has no layers with weights",
}


@pytest.fixture(scope="module")
def layers() -> dict[str, list[Tensor]]:
    return layers_of(CASES[0])


@pytest.mark.parametrize("kind", FAULTS)
def test_what_does_not_fit_is_refused_by_name(kind: str, layers, vdeblur, tmp_path: Path) -> None:
    path = tmp_path / "x.caffemodel"
    path.write_bytes(broken(kind, layers))
    result = vdeblur("models", "import", path, "--as", "flow-rnn")
    assert result.exit_code == ExitStatus.MODEL
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)
    place = 0
    for words in FAULTS[kind].split("*"):
        place = result.stderr.find(words, place)
        assert place >= 0, result.stderr
    assert result.stderr.count("\n") == 1
    assert "\x1b" not in result.stderr
    assert "Traceback" not in result.stderr


def test_caffe_weights_of_flow_rnn_fit_no_other_model(released, vdeblur) -> None:
    result = vdeblur("models", "import", released[CASES[0].name], "--as", "lite@mine")
    assert result.exit_code == ExitStatus.MODEL
    assert "holds the weights of flow-rnn, not of lite" in result.stderr


def test_the_registry_says_how_to_get_them(vdeblur) -> None:
    result = vdeblur("models", "download", "flow-rnn")
    assert result.exit_code == ExitStatus.MODEL
    for words in ("has no automatic download", "drive.google.com/drive/folders/1g6-1u22jScxI0vT78ObRRnZBP9VypDqH",
                  "vdeblur models import FlowNet2-s_weights_iter_1060000.caffemodel --as flow-rnn"):  # fmt: skip
        assert words in result.stderr
    listed = vdeblur("models", "list").stdout
    line = next(line for line in listed.splitlines() if line.startswith("flow-rnn"))
    assert "by hand" in line
    assert "30.58 DVD" in line
    assert line.endswith(" none*")
    shown = vdeblur("models", "show", "flow-rnn").stdout
    assert "license: none (the authors published no licence); vdeblur's own code is MIT\n" in shown


def unpacked(values: Tensor) -> bytes:
    """Return a float field (5) once for each value, as protobuf lets a writer do."""
    records = numpy.empty((values.numel(), 5), numpy.uint8)
    records[:, 0] = 5 << 3 | 5
    records[:, 1:] = values.numpy().astype("<f4").reshape(-1, 1).view(numpy.uint8)
    return records.tobytes()


def read_layer(path: Path, content: bytes) -> Tensor:
    """Write a model of one blob, and read it."""
    path.write_bytes(message(100, message(1, b"conv1") + message(7, content)))
    (read,) = caffe.read_caffe(path).layers["conv1"]
    return read


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 2_100_000])
def test_fields_one_by_one_are_read(count: int, tmp_path: Path) -> None:
    """More floats than a file may have fields, too, with other fields before and after."""
    values = torch.arange(count, dtype=torch.float32) - 1
    content = message(7, number(1, 1) + number(1, count)) + unpacked(values) + number(200, 3)
    assert torch.equal(read_layer(tmp_path / "x.caffemodel", content), values[None])


def test_packed_and_single_floats_are_read_in_their_order(tmp_path: Path) -> None:
    first, second, third = torch.arange(6.0).reshape(3, 2)
    packed = (message(5, values.numpy().tobytes()) for values in (first, third))
    content = message(7, message(1, varint(6))) + next(packed) + unpacked(second) + next(packed)
    assert read_layer(tmp_path / "x.caffemodel", content).tolist() == [0, 1, 2, 3, 4, 5]


def test_the_old_form_of_a_shape_is_read(tmp_path: Path) -> None:
    sides = b"".join(number(axis, side) for axis, side in ((1, 1), (2, 3), (3, 2), (4, 1)))
    read = read_layer(tmp_path / "x.caffemodel", sides + message(5, torch.arange(6.0).numpy().tobytes()))
    assert read.tolist() == [[[[0], [1]], [[2], [3]], [[4], [5]]]]


def test_unknown_fields_of_every_kind_are_passed_over(tmp_path: Path) -> None:
    """In the file, the layer and the blob; a blob's field 6 is its gradient, which weights do not need."""
    unknown = number(300, 1 << 63) + varint(301 << 3 | 1) + bytes(8) + varint(302 << 3 | 5) + bytes(4)
    unknown += message(303, b"\xff" * 40) + message((1 << 29) - 1, b"")
    content = unknown + message(6, bytes(8)) + message(7, message(1, varint(2))) + unknown + message(5, bytes(8))
    layer = unknown + message(1, b"conv1") + unknown + message(7, content) + unknown
    (tmp_path / "x.caffemodel").write_bytes(unknown + message(100, layer) + unknown)
    model = caffe.read_caffe(tmp_path / "x.caffemodel")
    assert [blob.tolist() for blob in model.layers["conv1"]] == [[0, 0]]


@pytest.mark.parametrize("old", [False, True])
def test_no_cut_and_no_changed_byte_is_a_fault_of_ours(old: bool, tmp_path: Path) -> None:
    """Every file either reads, or says what is wrong with it."""
    whole = caffe_model({"conv1": [torch.ones(2, 1, 1, 1), torch.ones(2)]}, old=old)
    path = tmp_path / "x.caffemodel"
    files = [whole[:length] for length in range(len(whole))]
    for value in (0x00, 0x01, 0x7F, 0x80, 0xFF):
        files += [whole[:place] + bytes([value]) + whole[place + 1 :] for place in range(len(whole))]
    refused = 0
    for file in files:
        path.write_bytes(file)
        try:
            caffe.read_caffe(path)
        except (caffe.CaffeError, ModelError):
            refused += 1
    assert refused > len(files) // 3
