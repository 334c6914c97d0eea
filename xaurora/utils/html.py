"""Compact HTML for notebooks. Styles are inline, so that nothing else on the page changes."""

from __future__ import annotations

import html
from collections.abc import Iterable

_SHOWN = 16  # lines of a text; the others are folded
_PRE = "margin:.2em 0;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.92em;line-height:1.35"


def text_block(text: str) -> str:
    """Return text as HTML: the first line as its title, and what is long folded."""
    title, *lines = text.splitlines() or [""]
    shown, rest = lines[:_SHOWN], lines[_SHOWN:]
    folded = ""
    if rest:
        folded = (
            f"<details><summary style='cursor:pointer'>{len(rest)} more lines</summary>"
            f"{_pre(rest)}</details>"
        )
    return f"<div><b>{html.escape(title)}</b>{_pre(shown)}{folded}</div>"


def findings(title: str, problems: Iterable[tuple[str, str]], notes: Iterable[str]) -> str:
    """Return problems, each with its fix as code, and folded notes, as HTML.

    Parameters
    ----------
    title : str
    problems : iterable of tuple
        Message and fix.
    notes : iterable of str
    """
    items = [
        f"<li style='margin:.25em 0'>{html.escape(message)}"
        + (f"<br>Fix: <code>{html.escape(fix)}</code>" if fix else "")
        + "</li>"
        for message, fix in problems
    ]
    out = [f"<div style='overflow-wrap:anywhere'><b>{html.escape(title)}</b>"]
    if items:
        out.append(f"<ol style='margin:.3em 0 .3em 1.2em;padding:0'>{''.join(items)}</ol>")
    if several := [f"<li>{html.escape(note)}</li>" for note in notes]:
        out.append(
            f"<details><summary style='cursor:pointer'>{len(several)} notes</summary>"
            f"<ul style='margin:.2em 0 .2em 1.2em;padding:0'>{''.join(several)}</ul></details>"
        )
    return "".join([*out, "</div>"])


def _pre(lines: list[str]) -> str:
    return f"<pre style='{_PRE}'>{html.escape(chr(10).join(lines))}</pre>" if lines else ""
