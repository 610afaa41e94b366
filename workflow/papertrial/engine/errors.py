"""One clear sentence for what went wrong."""

from collections.abc import Iterable
from difflib import get_close_matches


class PapertrialError(Exception):
    """Shown to the user as it is, without a traceback: it names the file, the key or the unit and what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """'did you mean ...?', or the list of what there is."""
    known = list(known)
    close = get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known) or 'none'}"
