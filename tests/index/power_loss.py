"""What may be on a disk after a power loss: recorded calls, without those that no sync covers.

A disk here keeps what was synced, and of the rest any part: a file's writes and its length until
the file is synced, names that were made, moved or removed until their folder is synced.
"""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CALLS = (
    "open,openat,creat,close,lseek,read,write,pwrite64,ftruncate,fsync,fdatasync,"
    "rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,fallocate,copy_file_range,sendfile"
)
_LINE = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\)\s+= (?P<result>-?\d+)")
_DESCRIPTOR = re.compile(r"(?P<number>-?\d+|AT_FDCWD)<(?P<path>[^>]*)>")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def record(command: list[str], log: Path) -> str:
    """Run a command under strace; its standard output."""
    options = ["-y", "-xx", "-s", str(1 << 26), "-e", f"trace={CALLS}", "-o", str(log)]
    done = subprocess.run(["strace", *options, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass
class File:
    """Content and changes of it that no sync covers: (offset, bytes), or (length, None)."""

    synced: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        for change in self.pending:
            _apply(self.synced, change)
        self.pending.clear()


def _apply(content: bytearray, change: tuple[int, bytes | None]) -> None:
    at, data = change
    if data is None:
        del content[at:]
        content.extend(bytes(at - len(content)))
        return
    content.extend(bytes(max(0, at - len(content))))
    content[at : at + len(data)] = data


@dataclass(frozen=True)
class Naming:
    """A name that appears (``node``), goes, or moves (``source``)."""

    path: str
    node: File | None = None  # None for a folder
    kind: str = "make"  # or "remove", "move"
    source: str = ""


class Disk:
    """Replays a log; ``after_loss`` gives what may be left."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._synced: dict[str, File | None] = {self._root: None}
        self._pending: list[Naming] = []
        self._names: dict[str, File | None] = dict(self._synced)  # as processes see them
        self._offsets: dict[int, int] = {}
        self.said = 0  # lines of standard output

    def _inside(self, path: str) -> bool:
        return path.startswith(self._root)

    def replay(self, log: Path) -> Iterator[str]:
        """Do one call after the other; yields the name of each that changes the disk."""
        for line in log.read_text().splitlines():
            match = _LINE.match(line)
            if match is None or int(match["result"]) < 0:
                continue
            if self._call(match["name"], match["arguments"], int(match["result"]), line):
                yield match["name"]

    def _call(self, name: str, arguments: str, result: int, line: str) -> bool:
        texts = [bytes.fromhex(t.replace("\\x", "")) for t in _TEXT.findall(arguments)]
        held = [(d["number"], _plain(d["path"])) for d in _DESCRIPTOR.finditer(arguments)]
        if name in ("open", "openat", "creat"):
            (opened,) = _DESCRIPTOR.findall(line[line.rindex("= ") :])
            path = _plain(opened[1])
            self._offsets[result] = 0
            if not self._inside(path) or "O_DIRECTORY" in arguments:
                return False
            if path not in self._names:
                self._make(path, File())
                return True
            node = self._names[path]
            if node is not None and "O_TRUNC" in arguments:
                node.pending.append((0, None))
                return True
            return False
        if name in ("mkdir", "mkdirat"):
            return self._make(self._full(held, texts[0]), None)
        if name in ("unlink", "unlinkat", "rmdir"):
            return self._change(Naming(self._full(held, texts[0]), kind="remove"))
        if name.startswith("rename"):
            source = self._full(held[:1], texts[0])
            return self._change(Naming(self._full(held[1:], texts[1]), kind="move", source=source))
        number, path = int(held[0][0]), held[0][1]
        if number == 1 and name == "write":
            self.said += 1
            return False
        if name == "lseek":
            self._offsets[number] = result
            return False
        at = self._offsets.get(number, 0)
        if name in ("read", "write"):
            self._offsets[number] = at + result
        node = self._names.get(path)
        if not self._inside(path) or name in ("read", "close"):
            return False
        assert name not in ("fallocate", "copy_file_range", "sendfile"), line
        if name in ("fsync", "fdatasync"):
            if node is None:
                self._sync_folder(path)
            else:
                node.sync()
            return True
        if node is None:
            return False  # a file without a name, gone with its process
        numbers = [int(each) for each in re.findall(r", (\d+)(?=[,)]|$)", arguments + ")")]
        if name == "ftruncate":
            node.pending.append((numbers[-1], None))
        else:
            node.pending.append((numbers[-1] if name == "pwrite64" else at, texts[0][:result]))
        return True

    def _full(self, held: list[tuple[str, str]], name: bytes) -> str:
        path = name.decode()
        return path if path.startswith("/") or not held else f"{held[0][1]}/{path}"

    def _make(self, path: str, node: File | None) -> bool:
        return self._change(Naming(path, node))

    def _change(self, naming: Naming) -> bool:
        if not self._inside(naming.path):
            return False
        _name(self._names, naming)
        self._pending.append(naming)
        return True

    def _sync_folder(self, path: str) -> None:
        left = []
        for naming in self._pending:
            if path in (_folder(naming.path), _folder(naming.source)):
                _name(self._synced, naming)
            else:
                left.append(naming)
        self._pending = left

    def after_loss(self, rng: random.Random) -> dict[str, bytes | None]:
        """Files by path, None for folders: the synced ones, and some of the other changes."""
        kept = rng.choice((0.0, 1.0, 0.5, rng.random()))
        names = dict(self._synced)
        for naming in self._pending:
            if rng.random() < kept:
                _name(names, naming)
        contents: dict[int, bytes] = {}
        for node in names.values():
            if node is None or id(node) in contents:
                continue
            content = bytearray(node.synced)
            for change in _some(node.pending, rng):
                _apply(content, change)
            contents[id(node)] = bytes(content)
        reached = {
            path: None if node is None else contents[id(node)]
            for path, node in names.items()
            if all(str(above) in names for above in Path(path).parents if self._below(above))
        }
        return reached

    def _below(self, path: Path) -> bool:
        return str(path).startswith(self._root)


def _some(
    changes: list[tuple[int, bytes | None]], rng: random.Random
) -> list[tuple[int, bytes | None]]:
    """The first changes with the last of them torn, or any of them, torn or whole."""
    if rng.random() < 0.5:
        some = changes[: rng.randint(0, len(changes))]
        return some[:-1] + [_torn(change, rng) for change in some[-1:]]
    kept = rng.choice((0.0, 1.0, 0.5, rng.random()))
    return [_torn(change, rng) for change in changes if rng.random() < kept]


def _torn(change: tuple[int, bytes | None], rng: random.Random) -> tuple[int, bytes | None]:
    at, data = change
    if data is None:
        return change
    sectors = rng.randint(0, len(data) // 512) * 512
    return at, data[: rng.choice((len(data), sectors, rng.randint(0, len(data))))]


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _plain(text: str) -> str:
    """A path as strace writes it, in hexadecimal or not."""
    if text.startswith("\\x"):
        text = bytes.fromhex(text.replace("\\x", "")).decode()
    return text.removesuffix(" (deleted)")


def _name(names: dict[str, File | None], naming: Naming) -> None:
    """Make, remove or move a name, with all that is below it, as far as it is there."""
    if naming.kind == "make":
        names[naming.path] = naming.node
        return
    source = naming.source or naming.path
    moved = {
        path: node
        for path, node in names.items()
        if path == source or path.startswith(source + "/")
    }
    for path in moved:
        del names[path]
    if naming.kind == "move":
        for path, node in moved.items():
            names[naming.path + path.removeprefix(source)] = node


def write(state: dict[str, bytes | None], root: Path, target: Path) -> None:
    """Put a state of the disk into a folder."""
    for path in sorted(state):
        content = state[path]
        place = target / Path(path).relative_to(root)
        if content is None:
            place.mkdir(exist_ok=True)
        else:
            place.write_bytes(content)
