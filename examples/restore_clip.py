"""Restore one file from Python:  python examples/restore_clip.py IN OUT."""

import sys
from pathlib import Path

from vdeblur.run.pipeline import restore_file
from vdeblur.settings import Settings

result = restore_file(Path(sys.argv[1]), Path(sys.argv[2]), Settings(model="lite", strength=1.0))
print(f"{result.frames} frames in {result.seconds:.1f} s")
