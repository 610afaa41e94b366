"""Read an object (a data frame, a character vector) out of an R package, without R."""

import bz2
import lzma
import warnings
import zlib
from pathlib import Path
from typing import Any, Literal

from papertrial.data.archives import is_debian, member
from papertrial.engine.errors import PapertrialError


def package_object(archive: Path, package: str, name: str) -> Any:
    """The data object `name` of an R package.

    Args:
        archive: the package as Debian builds it (.deb, a lazy-load data base) or as its authors publish it (.tar.gz,
            one .rda or .RData file an object).
        package: its name in R.
        name: the object's.

    Returns:
        a pandas DataFrame for a data frame, a numpy array for a vector.
    """
    if is_debian(archive):
        base = f"usr/lib/R/site-library/{package}/data/Rdata"
        return lazy_object(member(archive, f"{base}.rdx"), member(archive, f"{base}.rdb"), name)
    for ending in ("rda", "RData"):
        try:
            return rda_objects(member(archive, f"{package}/data/{name}.{ending}"))[name]
        except PapertrialError:
            continue
    raise PapertrialError(f"{archive.name} holds no data object '{name}' of the R package {package}")


def lazy_object(rdx: bytes, rdb: bytes, name: str) -> Any:
    """Object of a lazy-load data base: `rdx`, the index, says where in `rdb` its compressed record lies."""
    index = _convert(zlib.decompress(rdx, wbits=47), ".rds")["variables"]  # 47: zlib or gzip
    start, length = (int(v) for v in index[name])
    return _convert(_unpack_record(rdb[start : start + length]), ".rds")


def rda_objects(data: bytes) -> dict[str, Any]:
    """All objects of an .rda or .RData file, by name."""
    return _convert(data, ".rda")


def _unpack_record(record: bytes) -> bytes:
    """Four bytes of length, then zlib data; or after the length a letter, then bzip2 ('2') or raw lzma ('Z') data."""
    kind, body = record[4:5], record[5:]
    if kind == b"2":
        return bz2.decompress(body)
    if kind == b"Z":
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
        return lzma.decompress(body, format=lzma.FORMAT_RAW, filters=filters)
    return zlib.decompress(record[4:])


def _convert(data: bytes, kind: Literal[".rda", ".rds"]) -> Any:
    import rdata  # brings pandas: only the data sets that come from R pay for it

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Missing constructor for R class")  # a tibble is read as a data frame
        return rdata.conversion.convert(rdata.parser.parse_data(data, extension=kind))
