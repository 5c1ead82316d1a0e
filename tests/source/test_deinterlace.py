"""Interlaced video: what is said of it."""

from pathlib import Path

from tests import clips


def test_interlacing_that_begins_in_the_middle_is_said(vdeblur, tmp_path: Path) -> None:
    """R24: a broadcast that became interlaced was deinterlaced without a word."""
    codec = ("-c:v", "mpeg2video", "-q:v", 2)
    progressive = clips.make(tmp_path / "a.ts", frames=25, codec=codec)
    fields = ("-vf", "tinterlace=interleave_top,setfield=tff", "-flags", "+ildct+ilme", "-output_ts_offset", 1.4)
    interlaced = clips.make(tmp_path / "b.ts", frames=12, rate="50", codec=codec, extra=fields)
    source = tmp_path / "mixed.ts"
    source.write_bytes(progressive.read_bytes() + interlaced.read_bytes())
    for option, expected in ((), True), (("--deinterlace", "off"), False):
        result = vdeblur("run", source, tmp_path / "out.mkv", "-m", "identity", "-y", *option)
        assert result.exit_code == 0, result.output
        assert ("parts of" in result.stderr) is expected
    result = vdeblur("run", interlaced, tmp_path / "whole.mkv", "-m", "identity")
    assert "is interlaced" in result.stderr
    assert "parts of" not in result.stderr
