"""How results show themselves in a notebook: small tables, everything escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any


def table(rows: Mapping[str, Any]) -> str:
    """A table of names and values.

    Example:
        >>> table({"a": "<1"})
        '<table><tr><th>a</th><td>&lt;1</td></tr></table>'
    """
    lines = (f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows.items())
    return f"<table>{''.join(lines)}</table>"


def grid(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table with a header."""
    head = "".join(f"<th>{_text(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{_text(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _text(value: Any) -> str:
    return html.escape(str(value))
