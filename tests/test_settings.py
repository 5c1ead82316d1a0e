"""Settings check themselves, know what changes the result, and are obeyed by whoever runs them."""

import dataclasses
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests import clips
from vdeblur.errors import DeviceError, UsageError, VdeblurError
from vdeblur.look.compose import MODES
from vdeblur.run.pipeline import restore_file
from vdeblur.run.store import fingerprint
from vdeblur.settings import COMPARE_MODES, Cut, EncodeOptions, Settings
from vdeblur.source import video


@pytest.mark.parametrize(
    ("kind", "values", "hint"),
    [
        (Settings, {"strength": 7}, "0 to 1.5"),
        (Settings, {"strength": -0.1}, "0 to 1.5"),
        (Settings, {"strength": math.nan}, "number"),
        (Settings, {"strength": "much"}, "number"),
        (Settings, {"precision": "fp8"}, "auto, fp32, bf16, fp16"),
        (Settings, {"tile": "big"}, "auto, none, N or WxH"),
        (Settings, {"tile": "64x"}, "auto, none, N or WxH"),
        (Settings, {"tile": "²"}, "auto, none, N or WxH"),
        (Settings, {"tile": "٦٤"}, "auto, none, N or WxH"),
        (Settings, {"tile": None}, "auto, none, N or WxH"),
        (Settings, {"tile_overlap": -1}, "0 or more"),
        (Settings, {"device": "gpu"}, "auto, cpu, cuda"),
        (Settings, {"device": "cuda:"}, "auto, cpu, cuda"),
        (Settings, {"device": "cuda:\u0661"}, "auto, cpu, cuda"),
        (Settings, {"segment": 0}, "above 0"),
        (Settings, {"segment": math.inf}, "number"),
        (Settings, {"threads": 0}, "1 or more"),
        (Settings, {"threads": 1.5}, "whole number"),
        (Settings, {"share": (0, 3)}, "third of eight"),
        (Settings, {"share": (4, 3)}, "third of eight"),
        (Settings, {"share": 3}, "third of eight"),
        (Settings, {"compare": "both"}, "side, split, wipe, diff, html"),
        (Settings, {"compare": "side", "sample": True}, "leave out --compare"),
        (Settings, {"compare": "side", "share": (1, 2)}, "joins"),
        (Settings, {"sample": True, "dry_run": True}, "leave out"),
        (Settings, {"sample": True, "profile": True}, "leave out"),
        (EncodeOptions, {"crf": math.nan}, "number"),
        (EncodeOptions, {"crf": math.inf}, "number"),
        (EncodeOptions, {"crf": -1}, "lower is better"),
        (EncodeOptions, {"deinterlace": "yes"}, "auto, off, on"),
        (EncodeOptions, {"options": ("tune", "film")}, "name"),
        (Cut, {"start": -1}, "first frame"),
        (Cut, {"start": 5, "stop": 5}, "after start"),
        (Cut, {"stop": 0}, "after start"),
        (Cut, {"stop": math.nan}, "number"),
        (Cut, {"frames": 0}, "1 or more"),
        (Cut, {"frames": 2.5}, "whole number"),
    ],
)
def test_a_wrong_value_is_one_clear_error(kind: Any, values: dict[str, Any], hint: str) -> None:
    with pytest.raises(VdeblurError) as caught:
        kind(**values)
    assert isinstance(caught.value, DeviceError if "device" in values else UsageError)
    assert hint in caught.value.hint
    assert any(name in str(caught.value) for name in values), "it names the setting"
    assert "\n" not in str(caught.value)


def test_usual_types_become_exact_ones() -> None:
    settings: Any = Settings(
        checkpoint="mine.pth",
        tile=512,
        strength=1,
        segment=0.1,
        share=[1, 2],
        cut=Cut(start=1, stop=2.04),
        encoding=EncodeOptions(crf=18, options=[["tune", "film"]]),
    )
    assert (settings.checkpoint, settings.tile, settings.share) == (Path("mine.pth"), "512", (1, 2))
    assert (settings.segment, settings.cut.start, settings.cut.stop) == (Fraction(1, 10), 1, Fraction(51, 25))
    assert isinstance(settings.cut.start, Fraction)
    assert settings.encoding.options == (("tune", "film"),)
    assert repr((settings.strength, settings.encoding.crf)) == "(1.0, 18.0)", "as from the command line"


def test_modes_are_those_of_comparisons() -> None:
    assert (*MODES, "html") == COMPARE_MODES


@pytest.mark.parametrize("kind", [Settings, EncodeOptions, Cut])
def test_every_setting_says_whether_it_changes_the_result(kind: type) -> None:
    for field in dataclasses.fields(kind):
        assert isinstance(field.metadata.get("changes_result"), bool), f"{kind.__name__}.{field.name} has no mark"


def test_the_fingerprint_follows_the_marks(tmp_path: Path) -> None:
    """Its names and values are those of earlier versions, whose finished segments stay usable."""
    source = video.open_source(clips.make(tmp_path / "in.mkv", frames=2), Cut(), lambda code, message: None)
    source.close()
    facts = fingerprint(Settings(), "lite", "0", source)
    assert {name: value for name, value in facts.items() if name.startswith("--")} == {
        "--precision": "auto", "--tile": "auto", "--tile-overlap": "None", "--scene-detect": "True",
        "--strength": "1.0", "--pictures": "False", "--segment": "10", "--deterministic": "False",
        "--codec": "None", "--crf": "16.0", "--preset": "medium", "--options": "()", "--pix-fmt": "keep",
        "--lossless": "False", "--format": "None", "--deinterlace": "auto",
        "--start": "None", "--stop": "None", "--frames": "None",
    }  # fmt: skip
    assert fingerprint(Settings(device="cpu", strict=True, resume=False, threads=3), "lite", "0", source) == facts
    assert fingerprint(Settings(strength=0.5), "lite", "0", source) != facts


def test_settings_import_neither_torch_nor_av() -> None:
    code = "import sys, vdeblur.settings; assert not {'torch', 'av', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_restoring_a_file_does_all_that_the_settings_say(tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=10)
    restore_file(source, tmp_path / "out.mkv", Settings(model="identity", compare="html"))
    restore_file(str(source), str(tmp_path / "sample.mkv"), Settings(model="identity", sample=True))
    assert {path.name for path in tmp_path.iterdir()} == {"in.mkv", "out.mkv", "out_html.html", "sample.mkv"}
    assert clips.facts(tmp_path / "sample.mkv").size == (128, 48), "the input is beside the sample"


def test_words_of_tile_may_be_capital() -> None:
    assert [Settings(tile=tile).tile for tile in ("AUTO", "None", "640X480")] == ["auto", "none", "640x480"]
