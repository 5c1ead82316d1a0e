"""Checkpoints that run code, hang or fill the memory of whoever reads them."""

import io
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vdeblur.errors import ModelError
from vdeblur.models.checkpoint import read_checkpoint
from vdeblur.models.pickles import load_pickle

PROTO, STOP, MARK = b"\x80\x02", b".", b"("


def _zip(path: Path, data: bytes, extra: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> Path:
    """Write a checkpoint in the form of PyTorch 1.6 with these bytes as its pickle."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in {"data.pkl": data, "version": b"3\n", "byteorder": b"little", **(extra or {})}.items():
            archive.writestr(f"archive/{name}", content)
    return path


def _legacy(path: Path, data: bytes) -> Path:
    """Write a checkpoint in the form before PyTorch 1.6."""
    heads = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    path.write_bytes(b"".join(pickle.dumps(head, 2) for head in heads) + data + pickle.dumps([], 2))
    return path


def _nested(levels: int) -> bytes:
    """Return instructions that leave a tuple of two equal tuples of two equal tuples ...: 2^levels leaves."""
    code = b"K\x01q\x00"
    for level in range(levels):
        code += b"0" + b"h" + bytes([level]) + b"h" + bytes([level]) + b"\x86q" + bytes([level + 1])
    return code


def _late_nested(levels: int) -> bytes:
    """Return instructions that leave lists nested alike, each filled after it was put into the one before."""
    code = b"]q\x00"
    for level in range(levels):
        code += b"(]q" + bytes([level + 1]) + b"h" + bytes([level + 1]) + b"e" + b"0h" + bytes([level + 1])
    return code + b"0h\x00"


HANGS: dict[str, bytes] = {
    "a key of a dict": PROTO + b"}" + _nested(60) + b"K\x01s" + STOP,
    "keys of a dict": PROTO + b"}(" + _nested(60) + b"K\x01u" + STOP,
    "an item of a set": PROTO + b"c__builtin__\nset\n](" + _nested(60) + b"e\x85R" + STOP,
    "an ordered dict": PROTO + b"ccollections\nOrderedDict\n](" + _nested(60) + b"K\x01\x86e\x85R" + STOP,
    "a saved id": PROTO + MARK + _nested(60) + b"tQ" + STOP,
    "lists filled late": PROTO + b"(" + _late_nested(60) + b"tQ" + STOP,
    "before damage": PROTO + b"}" + _nested(60) + b"K\x01s" + b"i\xff\xff",
    "very deep": PROTO + b"}" + b"K\x01" + b"\x85" * 200_000 + b"K\x01s" + STOP,
}


@pytest.mark.parametrize("form", [_zip, _legacy])
@pytest.mark.parametrize("name", HANGS)
def test_nested_objects_do_not_hang(tmp_path: Path, form: Callable[[Path, bytes], Path], name: str) -> None:
    """C low: a small nested .pth hung torch.load, and no signal ended it."""
    path = form(tmp_path / "x.pth", HANGS[name])
    code = """import sys
from pathlib import Path
from vdeblur.models import checkpoint
try:
    checkpoint.read_checkpoint(Path(sys.argv[1]))
except checkpoint.ModelError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(path)]
    if name in ("very deep", "a key of a dict"):  # a failure would take this process with it
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert "would never end" in done.stdout, done.stderr
    else:
        with pytest.raises(ModelError, match="would never end"):
            read_checkpoint(path)


def test_a_zip_bomb(tmp_path: Path) -> None:
    """C low: compressed tensors unpacked to any size."""
    good = tmp_path / "good.pth"
    torch.save({"weight": torch.zeros(1 << 20)}, good)
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert bomb.stat().st_size < 20_000
    with pytest.raises(ModelError, match="compressed"):
        read_checkpoint(bomb)
    assert read_checkpoint(good)["weight"].shape == (1 << 20,)


def test_tensors_larger_than_their_file(tmp_path: Path) -> None:
    """C low: one value, repeated along every axis, is a tensor of any size."""
    path = tmp_path / "x.pth"
    torch.save({"weight": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)
    with pytest.raises(ModelError, match="far more than the file"):
        read_checkpoint(path)
    shared = torch.ones(1000, 1000)
    torch.save({"a": shared, "b": shared, "c": shared.T}, path)
    assert set(read_checkpoint(path)) == {"a", "b", "c"}, "shared weights are stored once"


def test_what_torch_saves_is_read_as_before(tmp_path: Path) -> None:
    """C low: checkpoints of all usual forms pass, those with optimisers and nested settings too."""
    network = torch.nn.Sequential(*(torch.nn.Conv2d(8, 8, 3) for _ in range(100)))
    optimiser = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 8, 400, 400)[:, :, :210, :210]).sum().backward()
    optimiser.step()
    state = {
        "state_dict": network.state_dict(),
        "optimizer": optimiser.state_dict(),
        "args": {"a": [(1, [2.0, "x"])] * 9},
    }
    for legacy in (False, True):
        path = tmp_path / "x.pth"
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        assert len(read_checkpoint(path)) == 200
        begun = time.process_time()
        load_pickle(path)
        assert time.process_time() - begun < 20


# Pickles that run code: what held must go on to hold ---------------------------------------------------------------


class _Runs:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _pickles(proof: Path) -> dict[str, bytes]:
    touch = f"touch {proof}"
    opened = f"open({str(proof)!r}, 'w')"
    return {
        "system": pickle.dumps(_Runs(os.system, touch), 2),
        "eval": pickle.dumps(_Runs(eval, opened), 2),
        "exec": pickle.dumps(_Runs(exec, opened), 2),
        "open": pickle.dumps({"weight": _Runs(open, str(proof), "w")}, 2),
        "popen": pickle.dumps(_Runs(subprocess.Popen, ["touch", str(proof)]), 2),
        "torch.load": pickle.dumps(_Runs(torch.load, str(proof)), 2),
        "getattr": PROTO + b"cbuiltins\ngetattr\ncos\nsystem\nX\x04\x00\x00\x00name\x86R.",
        "build": PROTO + b"c__builtin__\nobject\n)\x81}X\x05\x00\x00\x00hello" + b"cos\nsystem\nsb.",
        "inst": b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'" + touch.encode() + b"'\no.",
        "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(touch)]) + touch.encode() + b"\x85R.",
        "extension": b"\x80\x02\x82\x01.",
    }  # fmt: skip


@pytest.mark.parametrize("form", [_zip, _legacy])
@pytest.mark.parametrize("name", _pickles(Path("x")))
def test_pickles_that_run_code(tmp_path: Path, form: Callable[[Path, bytes], Path], name: str) -> None:
    """C: eleven kinds of pickles ran nothing, and run nothing."""
    proof = tmp_path / "p"
    path = form(tmp_path / "x.pth", _pickles(proof)[name])
    with pytest.raises(ModelError) as error:
        read_checkpoint(path)
    assert not proof.exists()
    assert "x.pth" in error.value.message
    assert "\n" not in error.value.message


def test_pickle_wrapped_in_a_state(tmp_path: Path) -> None:
    """C: nor does one that hides among tensors."""
    path = tmp_path / "x.pth"
    torch.save(OrderedDict(weight=torch.ones(3), extra=_Runs(os.system, f"touch {tmp_path / 'p'}")), path)
    with pytest.raises(ModelError, match="holds more than tensors"):
        read_checkpoint(path)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("header", [1 << 62, 1 << 40, 10**8, 3, 0])
def test_headers_of_safetensors_that_lie(tmp_path: Path, header: int) -> None:
    """C low: the header's size is bounded by the file."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", header) + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}' + bytes(8))
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        read_checkpoint(path)


def test_random_damage(tmp_path: Path) -> None:
    """C: a damaged checkpoint is an error in one line, wherever the damage is."""
    good = io.BytesIO()
    torch.save({"weight": torch.ones(20)}, good)
    generator = torch.Generator().manual_seed(1)
    path = tmp_path / "x.pth"
    for _ in range(100):
        data = bytearray(good.getvalue())
        for place in torch.randint(len(data), (5,), generator=generator).tolist():
            data[place] = int(torch.randint(256, (1,), generator=generator))
        path.write_bytes(data[: int(torch.randint(1, len(data) + 1, (1,), generator=generator))])
        message = ""
        try:
            read_checkpoint(path)
        except ModelError as error:
            message = error.message
        assert "\n" not in message


# The user's registry -------------------------------------------------------------------------------------------------

ENTRY = '[x]\nnetwork = "identity"\ndescription = "x"\nlicense = "MIT"\n[x.weights.w]\nfile = "x.pth"\nsources = []\n'
JUNK_REGISTRIES = [
    "x = 3", "[x]\n", '["../x"]\nnetwork = "identity"', "\x00",
    "a = " + "[" * 5000 + "]" * 5000, ENTRY.replace('"x.pth"', '"../../x.pth"'), ENTRY.replace('"x.pth"', "3"),
    ENTRY + 'size = "large"\n', ENTRY + "size = -1\n", ENTRY + 'megabytes = "x"\n', ENTRY + "megabytes = nan\n",
    ENTRY.replace("sources = []", 'sources = [{ kind = "ftp", url = "x" }]'), ENTRY.replace("[]", "3"),
    ENTRY.replace("[]", "[3]"), ENTRY + 'sha256 = "zz"\n', ENTRY + "sha256 = 3\n", ENTRY + "scores = 3\n",
    ENTRY + 'scores = ["x"]\n',
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(JUNK_REGISTRIES)))
def test_junk_as_registry(vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """C low: junk in the file that VDEBLUR_REGISTRY names was an internal error, or was found after the download."""
    (tmp_path / "registry.toml").write_text(JUNK_REGISTRIES[number])
    monkeypatch.setenv("VDEBLUR_REGISTRY", str(tmp_path / "registry.toml"))
    result = vdeblur("models", "list")
    assert result.exit_code == 5, result.output
    assert "registry.toml" in result.stderr
    assert "internal" not in result.output
    assert len(result.stderr.splitlines()) == 1
