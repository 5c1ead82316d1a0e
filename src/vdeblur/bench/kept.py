"""Results of an interrupted bench, kept by sequence."""

import contextlib
import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vdeblur.bench.contenders import Contender
from vdeblur.bench.results import BenchTask, FrameResult, SequenceResult
from vdeblur.datasets.layouts import DataSet
from vdeblur.files import cache_error, cache_folder, write_whole
from vdeblur.measure.protocols import Protocol
from vdeblur.version import __version__


class ResultCache:
    """A model's finished sequences, one file each in the user's cache, and their worst and best frames.

    Only the same task on the same files with the same weights finds them. A bench deletes them when it ends.
    """

    def __init__(
        self, task: BenchTask, dataset: DataSet, protocol: Protocol, contender: Contender, device: torch.device
    ) -> None:
        facts: dict[str, Any] = {
            "version": __version__,
            "protocol": protocol.name,
            "model": [contender.name, contender.digest, contender.precision, contender.version, str(device)],
            "threads": torch.get_num_threads(),
            "save": str(task.save.absolute()) if task.save else "",
            "vmaf": task.vmaf,
            "files": [
                (str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns)
                for sequence in dataset.sequences
                for pair in sequence.pairs
                for path in (pair.blurry, pair.sharp)
            ],
        }
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
        self.folder = cache_folder() / "bench" / key

    def read(self, sequence: str) -> SequenceResult | None:
        """Return a sequence's results; None if it is not finished, or its saved frames have been removed."""
        if not (self.folder / f"{sequence}.json").is_file():  # reading a FIFO would never end
            return None
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            facts = json.loads((self.folder / f"{sequence}.json").read_text("utf-8"))
            facts["frames"] = tuple(FrameResult(**frame) for frame in facts["frames"])
            result = SequenceResult(**facts)
            if result.saved is None or len(list(Path(result.saved).glob("*.png"))) >= result.restored:
                return result
        return None

    def write(self, result: SequenceResult) -> None:
        """Keep a finished sequence; the file appears complete or not at all.

        Raises: ModelError if the cache cannot be written.
        """
        try:
            write_whole(self.folder / f"{result.name}.json", json.dumps(asdict(result)).encode())
        except OSError as error:
            raise cache_error(error) from error

    def count(self) -> int:
        """Return the number of finished sequences."""
        return len(list(self.folder.glob("*.json")))

    def picture(self, sequence: str, kind: str) -> Path:
        """Return the file of a sequence's frame with the "worst" or "best" PSNR."""
        return self.folder / f"{sequence}-{kind}.png"

    def clear(self) -> None:
        """Delete all results and pictures."""
        shutil.rmtree(self.folder, ignore_errors=True)
