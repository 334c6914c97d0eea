"""What a notebook shows: escaped, compact, and styled inline."""

from __future__ import annotations

import xarray as xr

import xaurora
from xaurora.utils import html


def test_names_are_escaped_and_long_texts_folded() -> None:
    text = html.text_block("<script>alert(1)</script>\n" + "\n".join(map(str, range(40))))
    assert "<script>" not in text
    assert "24 more lines" in text
    found = html.findings("2", [("<b>", "ds['<i>']")], ["<note>"])
    assert "<b>2</b>" in found
    assert "&lt;b&gt;" in found
    assert "<code>ds[&#x27;&lt;i&gt;&#x27;]</code>" in found


def test_nothing_restyles_the_page(fields: xr.Dataset, tuned: xaurora.TunedAurora) -> None:
    wrong = fields.assign(t2m=fields["t2m"].assign_attrs(units="furlong"))
    for shown in (fields.aurora, wrong.aurora.check("tp", model="tiny"), tuned):
        text = shown._repr_html_()
        assert "<style" not in text
        assert "class=" not in text
        assert len(text) < 10_000
    assert "furlong" in wrong.aurora.check("tp", model="tiny")._repr_html_()
