"""The slow and plain computations that networks are held against, in the shared folder."""

import importlib.util
from pathlib import Path
from types import ModuleType


def load_oracles(shared: Path) -> ModuleType:
    """Import shared/parity/oracles.py."""
    specification = importlib.util.spec_from_file_location("oracles", shared / "parity" / "oracles.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
