"""HTML parts. All text that enters them is escaped here."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def text(value: object) -> str:
    """Return text that is safe inside HTML and inside quoted attributes."""
    return html.escape(str(value), quote=True)


def image(png: bytes, alt: str, caption: str) -> str:
    """Return a figure that holds the picture itself."""
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{text(alt)}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text_columns: Sequence[int] = (),
    verdict_column: int | None = None,
) -> str:
    """Return a table; columns not in ``text_columns`` are set as numbers."""

    def cell(tag: str, index: int, value: str) -> str:
        kind = "" if index in text_columns else ' class="number"'
        inner = _pill(value) if tag == "td" and index == verdict_column else text(value)
        return f"<{tag}{kind}>{inner}</{tag}>"

    head = "".join(cell("th", index, value) for index, value in enumerate(header))
    lines = ["".join(cell("td", index, value) for index, value in enumerate(row)) for row in rows]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>"


def _pill(verdict: str) -> str:
    level = "good" if verdict == "ok" else "mixed" if verdict in ("noisy", "biased") else "poor"
    return f'<span class="pill {level}">{text(verdict.replace("_", " "))}</span>'


def details(heading: str, body: str) -> str:
    """Return a part that opens on a click; ``body`` is HTML."""
    return f"<details><summary>{text(heading)}</summary>{body}</details>"


def preformatted(value: object) -> str:
    """Return a block of code: text as it is, anything else as JSON."""
    as_text = value if isinstance(value, str) else json.dumps(value, indent=2, default=str, ensure_ascii=False)
    return f"<pre>{text(as_text)}</pre>"


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, text) for every leaf of nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)
