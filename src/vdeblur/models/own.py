"""The user's own networks: a class in a Python file, or an entry point of an installed package.

    vdeblur run in.mp4 out.mp4 -m my_net.py:MyNet --weights my_net.safetensors

    [project.entry-points."vdeblur.networks"]
    my-net = "my_package.my_net:MyNet"

The class derives from vdeblur.networks.layers.Network and can be constructed without arguments. If it has parameters,
it needs --weights, unless it declares `trained = True`: then its constructor sets them for good. Loading a network runs
its code. The file can import installed packages, but not its neighbours; those need a package with an entry point.
"""

import functools
import importlib.util
import inspect
import sys
import zlib
from importlib import metadata
from pathlib import Path

from torch import nn

from vdeblur.errors import ModelError
from vdeblur.networks.layers import Network
from vdeblur.restore.streams import FEEDINGS

GROUP = "vdeblur.networks"  # of the entry points
HELP = "see docs/python.md"
# The methods that each kind of feeding calls; all others call forward alone.
METHODS = {
    "recurrent": ("align", "forward"),
    "cascade": ("pyramid", "align", "restore"),
    "bidirectional": ("features", "propagate_backward", "propagate_forward", "reconstruct"),
    "clip": ("analyse", "restore"),
    "cell": ("begin", "step", "look", "fuse"),
}


def is_file_name(name: str) -> bool:
    """Return whether a model's name has the form FILE.py:CLASS."""
    path, colon, _ = name.rpartition(":")
    return bool(colon) and path.endswith(".py")


def load_file(name: str) -> type[Network]:
    """Run a Python file and return the network class that FILE.py:CLASS names.

    Raises: ModelError if the file is missing or fails, or the class is missing or not a usable network.
    """
    file, _, class_name = name.rpartition(":")
    path = Path(file).expanduser()
    try:
        status = path.stat()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "check the path") from error
    contents = _run_file(path.resolve(), (status.st_ino, status.st_mtime_ns, status.st_size))
    if class_name not in contents:
        names = [key for key, value in contents.items() if _is_network(value)]
        hint = f"choose from {', '.join(f'{file}:{key}' for key in names)}" if names else HELP
        raise ModelError(f"{path} has no class {class_name!r}", hint)
    return _checked(contents[class_name], name)


@functools.lru_cache(maxsize=8)
def _run_file(path: Path, version: tuple[int, int, int]) -> dict[str, object]:
    """Run a Python file and return its names. version: identifies its content; a changed file is run again."""
    module_name = f"vdeblur_own_{path.stem}"  # cannot hide another module
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} is not a Python file", HELP)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and inspect look a class's module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ModelError(f"{path} fails: {type(error).__name__}: {_first_line(error)}", "run it with python") from error
    return vars(module)


def plugin_names() -> list[str]:
    """Return the names of the networks that installed packages offer, without loading them."""
    return sorted({point.name for point in metadata.entry_points(group=GROUP)})


def load_plugin(name: str) -> type[Network]:
    """Return the network class of an entry point.

    Raises: ModelError if it cannot be loaded, or is not a usable network.
    """
    point = next(point for point in metadata.entry_points(group=GROUP) if point.name == name)
    try:
        found = point.load()
    except Exception as error:
        message = f"{name} ({point.value}) cannot be loaded: {type(error).__name__}: {_first_line(error)}"
        raise ModelError(message, "check the package that offers it") from error
    return _checked(found, name)


def _is_network(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Network) and value is not Network


def _checked(found: object, name: str) -> type[Network]:
    """Return a class that meets what callers of a network need.

    Raises: ModelError saying what is missing.
    """
    if not (isinstance(found, type) and issubclass(found, Network)):
        raise ModelError(f"{name} is not a subclass of vdeblur.networks.layers.Network", HELP)
    feeding = getattr(found, "feeding", None)
    if feeding not in FEEDINGS:
        fault = f"{name} has no feeding" if feeding is None else f"{name} has the unknown feeding {feeding!r}"
        raise ModelError(fault, f"set feeding to one of {', '.join(FEEDINGS)}")
    for method in METHODS.get(feeding, ("forward",)):
        if getattr(found, method, nn.Module.forward) is nn.Module.forward:
            raise ModelError(f"{name} has no method {method}", f"the feeding {feeding!r} calls it; {HELP}")
    required = [
        key
        for key, value in inspect.signature(found).parameters.items()
        if value.default is value.empty and value.kind not in (value.VAR_POSITIONAL, value.VAR_KEYWORD)
    ]
    if required:
        raise ModelError(f"the constructor of {name} needs {', '.join(required)}", "give each a default")
    return found


def needs_weights(network: type[Network]) -> bool:
    """Return whether the user's own network runs only with --weights."""
    return bool(network().state_dict()) and not network.trained


def code_checksum(network: Network) -> int:
    """Return a CRC-32 of the file that defines the user's own network, and 0 for networks of vdeblur.

    Without it, a run could resume with another version of the code.
    """
    if type(network).__module__.startswith("vdeblur."):
        return 0
    try:
        return zlib.crc32(Path(inspect.getfile(type(network))).read_bytes())
    except (OSError, TypeError):  # defined in a console or an archive
        return 0


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
