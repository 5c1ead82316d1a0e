"""Records of cached weights, beside each file.

The cache holds models/NAME/WEIGHTS.safetensors, converted once, and models/NAME/WEIGHTS.json, the record of the
original file. The record outlives `remove`, so that a file without a published digest cannot change unnoticed.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from vdeblur import files


@dataclass(frozen=True)
class WeightsRecord:
    """A cached file: the original's name, source, digests and size, and the converted file's SHA-256.

    imported: that the user imported it under a name that the registry lacks.
    """

    file: str
    source: str
    digests: dict[str, str]
    size: int
    converted_sha256: str
    imported: bool = False


def cached_path(model: str, weights: str) -> Path:
    """Return where the cache keeps converted weights, whether they are there or not."""
    return files.cache_folder() / "models" / model / f"{weights}.safetensors"


def record_path(cached: Path) -> Path:
    """Return where the record of converted weights is."""
    return cached.with_suffix(".json")


def read_record(cached: Path) -> WeightsRecord | None:
    """Read the record of converted weights; None if it is missing or damaged."""
    if not record_path(cached).is_file():  # reading a FIFO would never end
        return None
    try:
        record = WeightsRecord(**json.loads(record_path(cached).read_text("utf-8")))
        return record if isinstance(record.digests.get("sha256"), str) else None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def write_record(cached: Path, record: WeightsRecord) -> None:
    """Write the record of converted weights; it appears complete or not at all."""
    files.write_whole(record_path(cached), (json.dumps(asdict(record), indent=1) + "\n").encode())


def imported_records(model: str) -> Iterator[tuple[str, WeightsRecord]]:
    """Yield the name and the record of all weights that the user imported for a model."""
    for path in sorted((files.cache_folder() / "models" / model).glob("*.json")):
        record = read_record(path.with_suffix(".safetensors"))
        if record is not None and record.imported:
            yield path.stem, record
