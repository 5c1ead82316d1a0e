"""Read what torch.save wrote without running code in it, and without being held up or filled up by it.

PyTorch's restricted reader runs nothing. But a file of a few kilobytes can nest tuples so that hashing them takes
years, in C code that no signal interrupts, and one of a few megabytes can unpack to terabytes. So the structure of the
pickle and the sizes in the zip are checked first.
"""

import io
import pickletools
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

LARGEST_COUNT = 10_000_000  # objects, those that are shared counted at every use; large checkpoints have 10^5
DEEPEST = 500  # containers within containers; checkpoints have about ten
LARGEST_PICKLE = 1 << 28  # bytes of the structure alone; the largest checkpoints have about 1 MB
SHARED = 8  # how many times larger than the file the tensors together may be; tied weights are stored once
SPARE_BYTES = 1 << 20
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_PICKLES = 4  # at the beginning of a file before PyTorch 1.6; the fourth holds the objects

Node = list[Any]  # an object of the pickle: the nodes of the objects in it


class HostilePickleError(ValueError):
    """A checkpoint is built to hold up or fill up whoever reads it."""


def load_pickle(path: Path) -> Any:
    """Return what torch.save wrote to a file.

    Raises: HostilePickleError; OSError, pickle.UnpicklingError and others where the file is damaged or holds code.
    """
    _check_file(path)
    with warnings.catch_warnings(action="ignore"):  # about its pickle protocol, which users cannot change
        return torch.load(path, map_location="cpu", weights_only=True)


def check_sizes(tensors: dict[str, Tensor], path: Path) -> None:
    """Refuse tensors that claim more values than their file can hold, such as one value repeated along every axis.

    Raises: HostilePickleError.
    """
    total = sum(value.numel() * value.element_size() for value in tensors.values() if value.layout == torch.strided)
    if total > SHARED * path.stat().st_size + SPARE_BYTES:
        raise HostilePickleError(f"its tensors would take {total / 1e9:.1f} GB, far more than the file")


def _check_file(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:  # PyTorch goes by these bytes, too
            file.seek(0)
            for _ in range(LEGACY_PICKLES):
                if not _check_structure(file):
                    return
            return
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            total = sum(entry.file_size for entry in entries)
            if any(entry.compress_type for entry in entries) or total > path.stat().st_size:
                raise HostilePickleError("its parts are compressed, which torch.save never does")
            for entry in entries:
                if entry.filename.rpartition("/")[2] == "data.pkl":
                    _check_structure(io.BytesIO(archive.read(entry)))


def _check_structure(file: BinaryIO) -> bool:
    """Check the pickle at the file's position, and go past it; return whether there is a whole one.

    Raises: HostilePickleError.
    """
    nodes: list[Node] = []
    try:
        _collect_nodes(file, nodes)
        is_whole = True
    except HostilePickleError:
        raise
    except Exception:  # pickletools raises many kinds; PyTorch names what is wrong, but first reads what is before it
        is_whole = False
    _check_nodes(nodes)
    return is_whole


def _collect_nodes(file: BinaryIO, nodes: list[Node]) -> None:
    """Add every container of a pickle, each with what it holds, to the nodes, without building the objects."""
    stack: list[Node | None] = []  # None: a mark
    memo: dict[int, Node | None] = {}
    leaf: Node = []
    begin = file.tell()

    def add(children: list[Any]) -> None:
        nodes.append(children)
        stack.append(nodes[-1])

    def popped_to_mark() -> list[Any]:
        place = len(stack) - 1 - stack[::-1].index(None)
        items = stack[place + 1 :]
        del stack[place:]
        return items

    for op, argument, _ in pickletools.genops(file):
        if file.tell() - begin > LARGEST_PICKLE:
            raise HostilePickleError("its structure is too large")
        name = op.name
        if name == "MARK":
            stack.append(None)
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name.endswith("PUT"):
            memo[int(str(argument))] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo.get(int(str(argument)), leaf))
        elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"):
            add([])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP_MARK":
            popped_to_mark()
        elif name in ("TUPLE", "LIST", "DICT", "FROZENSET"):
            add(popped_to_mark())
        elif name in ("APPENDS", "SETITEMS", "ADDITEMS"):
            items = popped_to_mark()
            target = stack[-1]
            if target is not None and target is not leaf:
                target.extend(items)
        else:
            _apply(op, stack, nodes, leaf)


def _apply(op: Any, stack: list[Node | None], nodes: list[Node], leaf: Node) -> None:
    """Apply an instruction that takes a fixed number of objects: what it leaves holds what it took."""
    taken = [stack.pop() for _ in op.stack_before]
    if op.name in ("APPEND", "SETITEM", "BUILD"):  # changes an object and leaves it
        target = taken[-1]
        if target is not None and target is not leaf:
            target.extend(taken[:-1])
        stack.append(target)
    elif op.stack_after and taken:
        nodes.append(taken[::-1])
        stack.append(nodes[-1])
    else:
        stack.extend(leaf for _ in op.stack_after)


def _check_nodes(nodes: list[Node]) -> None:
    """Count objects and depth, what is shared at every use.

    Raises: HostilePickleError.
    """
    counted: dict[int, tuple[int, int]] = {}  # by node: objects in it, and containers one in the other
    for root in nodes:
        waiting = [(root, False)]
        open_nodes: set[int] = set()
        while waiting:
            node, is_ready = waiting.pop()
            if id(node) in counted:
                continue
            if is_ready:
                parts = [counted.get(id(child), (1, 1)) for child in node]  # a cycle counts once
                count, depth = 1 + sum(part[0] for part in parts), 1 + max((part[1] for part in parts), default=0)
                if count > LARGEST_COUNT or depth > DEEPEST:
                    raise HostilePickleError("its objects are nested so that reading them would never end")
                counted[id(node)] = (count, depth)
            elif id(node) not in open_nodes:
                open_nodes.add(id(node))
                waiting.append((node, True))
                waiting.extend((child, False) for child in node if child and id(child) not in counted)
