"""The scorecard's numbers are the scores', it says what it rests on, and it can be read in a real
browser.
"""

from __future__ import annotations

import html as html_module
import json
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import xaurora
from xaurora import errors
from xaurora.plots.scorecards import card as scorecard
from xaurora.plots.scorecards import headlines, notes, page

BROWSER = next(
    (b for b in ("chromium", "chromium-browser", "google-chrome", "chrome") if shutil.which(b)),
    None,
)


@pytest.fixture(scope="module")
def compared(fields: xr.Dataset, tuned) -> dict[str, xr.Dataset]:
    """A tuned model, climatology and persistence, scored together by everything there is."""
    past = fields.isel(time=slice(None, 30))
    init = fields["time"].values[10:36]
    forecast = fields.aurora.predict(
        "12h", model=tuned, time=init, variables=["t2m", "tp"], progress=False
    )
    normals = xaurora.climatology(past, ["t2m", "tp"], window_days=31)
    forecasts = {
        "mine": forecast,
        "climatology": xaurora.climatology_forecast(normals, forecast),
        "persistence": (
            xaurora.persistence(fields, ["t2m", "tp"], ["6h", "12h"]).sel(
                init_time=forecast["init_time"]
            )
        ),
    }
    scores = xaurora.compare(
        forecasts, fields, climatology=normals, metrics="all", regions=["global", "tropics"]
    )
    return {**scores, "forecast": forecast}


def _card(
    compared: dict[str, xr.Dataset], fields: xr.Dataset, **options: object
) -> scorecard.Scorecard:
    others = {n: compared[n] for n in ("climatology", "persistence")}
    return scorecard.build(
        compared["mine"],
        baseline=others,
        name="mine",
        forecast=compared["forecast"],
        truth=fields,
        **options,
    )


def test_numbers_are_those_of_the_scores(compared, fields, tmp_path: Path) -> None:
    card = _card(compared, fields, regions=["global", "tropics"])
    assert len(card.rows) > 10
    for row in card.rows:
        factor = 1e3 if row.units == "mm" else 1.0
        for name in ("mine", "climatology", "persistence"):
            want = compared[name][row.label].sel(metric=row.metric, region=row.region) * factor
            np.testing.assert_allclose(
                row.of(name), want, rtol=1e-12, err_msg=f"{row.label} {row.metric} {name}"
            )
    printed = np.unique([float(v) for v in re.findall(r"data-value='([^']+)'", card.html)])
    every = np.unique(
        [row.of(n) for row in card.rows for n in ("mine", "climatology", "persistence")]
    )
    np.testing.assert_allclose(printed, every[np.isfinite(every)], rtol=1e-12)
    assert card.save(tmp_path / "card.html").read_text(encoding="utf-8") == card.html
    assert card.save(tmp_path / "card.png").stat().st_size > 20_000
    assert card.save(tmp_path / "card.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(errors.SaveError, match="already exists"):
        card.save(tmp_path / "card.png")
    card.save(tmp_path / "card.png", overwrite=True)
    plt.close("all")


def test_what_the_page_says(compared, fields) -> None:
    card = _card(compared, fields, title="Rain & <more>")
    page_text = card.html
    assert "Rain &amp; &lt;more&gt;" in page_text
    assert "http" not in re.sub(r"data:image[^']*", "", page_text), "nothing is fetched"
    provenance = dict(card.provenance)
    assert provenance["Base model"].startswith("tiny")
    assert provenance["Init times"].startswith("26, ")
    assert provenance["Grid"] == "16 × 32"
    titles = [t for _, figures, _ in card.figures for t, *_ in figures]
    for wanted in ("CSI by threshold", "Reliability", "Calibration", "Intensity", "Mean error"):
        assert wanted in titles
    assert any(t.startswith("Best case") for t in titles)
    assert any(t.startswith("Worst case") for t in titles)
    assert card.marked
    assert "★" in page_text
    for row in card.rows:  # a mark is what significance says, of the cells that are not false
        if row.metric == "rmse" and row.label == "t2m":
            for baseline in ("climatology", "persistence"):
                found = xaurora.significance(compared["mine"], compared[baseline])["t2m"].sel(
                    metric="rmse", region="global"
                )
                interval = (found.sel(estimate="low") > 0) | (found.sel(estimate="high") < 0)
                marks = row.marks["mine", baseline]
                np.testing.assert_array_equal(marks, interval & marks)
    noted = compared["mine"].assign_attrs(xaurora_base="small", xaurora_base_note="for debugging")
    assert "small (for debugging)" in dict(notes.provenance_rows(noted))["Base model"]


def test_differences() -> None:
    row = scorecard.Row(
        "global", "t2m", "rmse", "K", np.array([1.0, 3.0]), {"b": np.array([2.0, 2.0])}
    )
    assert row.relative("b").tolist() == [-0.5, 0.5]
    assert row.difference("forecast", "b", 0) == "-50.0%"
    acc = scorecard.Row("global", "t2m", "acc", "", np.array([0.8]), {"b": np.array([0.6])})
    assert acc.relative("b")[0] == pytest.approx(-0.5)
    assert acc.difference("forecast", "b", 0) == "+0.20"
    ratio = scorecard.Row(
        "global", "t2m", "spread_skill_ratio", "", np.array([0.9]), {"b": np.array([1.2])}
    )
    assert ratio.relative("b")[0] == pytest.approx(-0.5)
    bias = scorecard.Row("global", "t2m", "bias", "K", np.array([0.1]), {"b": np.array([0.0])})
    assert bias.difference("forecast", "b", 0) == ""
    huge = scorecard.Row("global", "t2m", "rmse", "K", np.array([100.0]), {"b": np.array([1.0])})
    assert huge.difference("forecast", "b", 0) == ">+999%"


def test_models_of_other_names_meet(compared, fields) -> None:
    """WeatherBench2's names beside one's own."""
    wb2 = (
        compared["forecast"]
        .aurora.to_weatherbench2()
        .aurora.evaluate(fields, regions=["global"], metrics=["rmse"])
    )
    card = scorecard.build(compared["mine"], baseline={"again": wb2}, pictures=False)
    row = next(
        r for r in card.rows if r.label == "tp" and r.metric == "rmse" and r.region == "global"
    )
    np.testing.assert_allclose(
        row.others["again"], row.values, rtol=1e-5
    )  # float32 of another unit


def test_notes_on_what_does_not_compare(compared, tmp_path: Path) -> None:
    other = compared["persistence"].assign_attrs(grid="8 × 16", fields_scored=3)
    card = scorecard.build(compared["mine"], baseline={"coarse": other}, pictures=False)
    assert any("another grid" in n for n in card.notes)
    assert any("scored on 3 fields" in n for n in card.notes)
    alone = compared["persistence"].drop_vars(
        [c for c in compared["persistence"].coords if "__" in str(c)]
    )
    card = scorecard.build(compared["mine"], baseline=alone, pictures=False)
    assert any("Significance is not shown" in n for n in card.notes)
    for call, error, match in (
        (
            lambda: compared["mine"].aurora.scorecard(tmp_path / "card.txt"),
            errors.OptionError,
            "must be written as one of .html, .png",
        ),
        (
            lambda: compared["mine"].aurora.scorecard(baseline={"x": 3}),
            errors.KindError,
            "not a Dataset of scores",
        ),
        (
            lambda: compared["mine"].aurora.scorecard(baseline={"mine": other}, name="mine"),
            errors.OptionError,
            "label",
        ),
        (
            lambda: compared["mine"].aurora.scorecard(truth=other),
            errors.OptionError,
            "forecast and truth",
        ),
    ):
        with pytest.raises(error, match=match):
            call()
    assert not list(tmp_path.iterdir())


def test_what_is_shown_can_be_chosen(compared, fields) -> None:
    card = scorecard.build(
        compared["mine"],
        variables=["2m_temperature"],
        metrics=["mae"],
        regions=["tropics"],
        pictures=False,
    )
    assert {(r.variable, r.metric, r.region) for r in card.rows} == {("t2m", "mae", "tropics")}
    first = scorecard.build(compared["mine"], pictures=False)
    assert {r.region for r in first.rows} == {"global"}
    assert any("the regions tropics" in note for note in first.notes)
    for options, words in (
        ({"variables": ["hail"]}, r"variables=\['hail'\] were not scored"),
        ({"metrics": "luck"}, "metrics="),
        ({"regions": ["mars"]}, "regions="),
        ({"test": "coin"}, "there is no test 'coin'"),
    ):
        with pytest.raises(errors.OptionError, match=words):
            compared["mine"].aurora.scorecard(**options)


def test_headlines_come_first_and_are_few(compared, fields) -> None:
    lines = headlines.headlines(_card(compared, fields, pictures=False).rows)
    assert [line.text for line in lines[:3]] == ["Rain, CRPS", "Rain, RMSE", "Rain, bias"]
    assert "2 metre temperature, RMSE" in [line.text for line in lines]
    assert len(lines) <= 12
    assert headlines.leads_shown(40) == [0, 6, 11, 17, 22, 28, 33, 39]
    assert headlines.headlines([]) == []


def test_a_notebook_is_not_restyled(compared, fields) -> None:
    """Every rule of the style applies inside the card alone."""
    text = _card(compared, fields, pictures=False)._repr_html_()
    assert len(text) < 30_000
    style = re.search(r"<style>(.*?)</style>", text, re.S).group(1)
    plain = re.sub(r"@media[^{]*", "", style)
    for selectors in re.findall(r"([^{}]+){", plain):
        for one in selectors.split(","):
            assert one.strip() == "" or ".xaurora-card" in one, one
    assert "<table" in text


def test_the_test_of_significance_is_named(compared, fields) -> None:
    others = {"climatology": compared["climatology"]}
    card = scorecard.build(
        compared["mine"], baseline=others, test="diebold_mariano", pictures=False
    )
    assert "Diebold" in card.html
    assert "autoregressive" in _card(compared, fields, pictures=False).html


def test_colours() -> None:
    assert page.colour(-0.3) != page.colour(0.3)
    assert page.colour(float("nan")) == "#ffffff"
    assert page.ink("#ffffff") == "#111111"
    assert page.ink("#2166ac") == "#ffffff"


_PROBE = """<script>
const cells = [...document.querySelectorAll('td, th')], over = [];
const figures = [...document.querySelectorAll('figure, h1, h2, nav, section > .wide')]
  .filter(e => e.checkVisibility({contentVisibilityAuto: true}));
for (const e of cells) { if (e.scrollWidth > e.clientWidth + 1) over.push(e.textContent); }
const boxes = figures.map(e => e.getBoundingClientRect());
let clashes = 0;
for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
  if (figures[i].contains(figures[j]) || figures[j].contains(figures[i])) continue;
  const a = boxes[i], b = boxes[j];
  const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
  if (across > 1 && down > 1) clashes++;
}
const shown = [...document.querySelectorAll('td[data-value]')];
const out = {
  width: innerWidth, page: document.documentElement.scrollWidth, over, clashes,
  images: [...document.images].filter(i => !i.naturalWidth).length,
  values: shown.map(e => [e.dataset.value, e.firstChild.textContent]),
  height: document.documentElement.scrollHeight,
  first: document.querySelector('#headlines .wide').getBoundingClientRect().bottom,
  empty: [...document.querySelectorAll('details')].filter(e => {
    const before = e.offsetHeight;
    e.open = true;
    return e.offsetHeight < before + 20;
  }).length,
  scripts: document.scripts.length,
  small: Math.min(...cells.map(e => parseFloat(getComputedStyle(e).fontSize))),
};
const pre = document.createElement('pre');
pre.id = 'probe';
pre.textContent = JSON.stringify(out);
document.body.appendChild(pre);
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
@pytest.mark.parametrize("width", [1400, 390])
def test_in_a_real_browser(compared, fields, tmp_path: Path, width: int) -> None:
    card = _card(compared, fields, title="<script>alert(1)</script>")
    path = tmp_path / "card.html"
    path.write_text(card.html.replace("</body>", _PROBE + "</body>"), encoding="utf-8")
    # A window of Chromium is never narrower than 500 pixels; a frame is.
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<iframe id='f' src='card.html'"
        f" style='width:{width}px;height:4000px;border:0'></iframe><script>onload = () => {{"
        " const inner = document.getElementById('f').contentDocument;"
        " document.body.append(inner.getElementById('probe').cloneNode(true));"
        " }</script>"
    )
    dom = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--allow-file-access-from-files",
            "--virtual-time-budget=4000",
            f"--window-size={max(width, 500)},4000",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.S)
    assert found, dom[-2000:]
    seen = json.loads(html_module.unescape(found.group(1)))
    assert seen["width"] == width
    assert seen["page"] <= width, "the page itself does not scroll sideways"
    assert seen["over"] == [], "text is cut or runs over"
    assert seen["clashes"] == 0
    assert seen["images"] == 0, "every picture is there"
    assert seen["small"] >= 10.5
    assert seen["empty"] == 0, "every <details> opens"
    assert seen["scripts"] == 1, "the probe alone"
    if width == 1400:
        assert seen["first"] < 900, "the headlines are on the first screen"
        assert seen["height"] < 6000
    for exact, shown in seen["values"]:
        assert shown == page.number(float(exact))
    assert len(seen["values"]) > 50
