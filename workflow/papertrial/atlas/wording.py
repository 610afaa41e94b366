"""Numbers as people read them."""

MINUS, SUPERSCRIPT = "−", str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(x: float | None) -> str:
    """Four significant digits: 0.4569, 978.9, 26,162, 8.5×10⁻⁵; a dash for nothing."""
    if x is None:
        return "–"
    size = abs(x)
    if size >= 1e7 or 0 < size < 1e-3:
        mantissa, exponent = f"{x:.2e}".split("e")
        text = f"{float(mantissa):g}×10{str(int(exponent)).translate(SUPERSCRIPT)}"
    else:
        text = f"{x:,.0f}" if size >= 1000 else f"{x:.4g}"
    return text.replace("-", MINUS)


def duration(seconds: float) -> str:
    """40 s, 12 min, 3.1 h."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.2g} h"
