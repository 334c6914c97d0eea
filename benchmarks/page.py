"""Write the report of a saved benchmark run, and ``docs/benchmarks.md`` from all reports.

pytest benchmarks/ --benchmark-only --benchmark-json=run.json
python benchmarks/page.py run.json    # writes benchmarks/reports/suite-<size>-<where>.json
                                      # and the page
python benchmarks/page.py             # rewrites the page from the reports
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "benchmarks" / "reports"
PAGE = ROOT / "docs" / "benchmarks.md"


def condensed(run: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a saved run that the report keeps."""
    rows = [
        {
            "group": b["group"],
            "case": b["name"].removeprefix("test_"),
            "seconds": b["stats"]["median"],
            "rounds": b["stats"]["rounds"],
            "date": run["datetime"],
            **b["extra_info"],
        }
        for b in run["benchmarks"]
    ]
    return {"date": run["datetime"], "machine": run["machine_info"], "rows": rows}


def _cell(row: dict[str, Any], key: str, form: str, factor: float = 1.0) -> str:
    value = row.get(key)
    return format(value * factor, form) if value is not None else ""


def section(report: dict[str, Any]) -> list[str]:
    """Return the lines of one machine's tables."""
    m = report["machine"]
    where = m["gpu"] if m["gpu"] != "none" else f"{m['processor']}, {m['cores']} cores, no GPU"
    versions = ", ".join(f"{n} {v}" for n, v in m["versions"].items())
    lines = [
        f"## Size `{m['size']}`: {where}",
        "",
        f"{report['date'][:16]} UTC, `--pairs {m['pairs']}`; Python {m['python']}, {versions}.",
        "",
    ]
    for group in dict.fromkeys(row["group"] for row in report["rows"]):
        dates = sorted({r["date"] for r in report["rows"] if r["group"] == group})
        lines += [
            f"### {group[:1].upper()}{group[1:]}",
            "",
            *([] if dates == [report["date"]] else [f"Measured {dates[0][:16]} UTC.", ""]),
            (
                "| case | seconds | stock | ratio | samples/s | of matmul peak | peak | stock's"
                " peak | |"
            ),
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in (r for r in report["rows"] if r["group"] == group):
            cells = [
                row["case"].replace("|", "/"),
                _cell(row, "seconds", ".3g"),
                _cell(row, "stock_seconds", ".3g"),
                _cell(row, "ratio", ".2f" if row.get("ratio", 0) < 10 else ".0f"),
                _cell(row, "samples_a_second", ".3g"),
                _cell(row, "of_matrix_peak", ".2f"),
                _cell(row, "peak_bytes", ".0f", 1e-6) + (" MB" if "peak_bytes" in row else ""),
                _cell(row, "stock_peak_bytes", ".0f", 1e-6)
                + (" MB" if "stock_peak_bytes" in row else ""),
                str(row.get("note", "")),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def start_up() -> list[str]:
    """Return the table of ``benchmarks/startup.py``."""
    report = json.loads((REPORTS / "startup.json").read_text(encoding="utf-8"))
    rows = [f"| `{name}` | {seconds:.2f} |" for name, seconds in report["seconds"].items()]
    source = f"Median of seven processes, {report['machine']} (`python benchmarks/startup.py`)."
    return [source, "", "| command | seconds |", "|---|---|", *rows]


def engines() -> list[str]:
    """Return the table of ``benchmarks/engines.py``."""
    report = json.loads((REPORTS / "engines.json").read_text(encoding="utf-8"))
    lines = [
        f"{report['size']}; {report['machine']}, JAX {report['versions']['jax']}",
        "(`python benchmarks/engines.py`). Seconds and peaks: stock PyTorch / xaurora on PyTorch /",
        "xaurora on JAX. Stock has no stored latents and runs the backbone in each step.",
        "",
        "| case | seconds | JAX over stock | JAX over PyTorch | compile, s | peak, GB |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["cases"]:
        seconds, peaks = (
            " / ".join(f"{row[key][n]:.3g}" for n in ("stock", "torch", "jax"))
            for key in ("seconds", "peak_gb")
        )
        lines.append(
            f"| {row['case']} | {seconds} | {row['jax_over_stock']:.2f} |"
            f" {row['jax_over_torch']:.2f} | {row['compile_s']:.0f} | {peaks} |"
        )
    return lines


def page(reports: list[dict[str, Any]]) -> str:
    """Return the text of the page."""
    lines = [
        "# Benchmarks",
        "",
        "<!-- Written by benchmarks/page.py from benchmarks/reports/. -->",
        "",
        "Speed and memory compared with stock microsoft-aurora code for the same work. Both run",
        "alternately in the same session, on a CPU each in its own process:",
        "",
        "```bash",
        (
            "pytest benchmarks/ --benchmark-only                     # AuroraSmall at 96 × 160;"
            " about 6 minutes on 2 cores"
        ),
        (
            "pytest benchmarks/ --benchmark-only --pairs 5           # pairs of runs: ratios"
            " scatter less; about 11 minutes"
        ),
        (
            "pytest benchmarks/ --benchmark-only --size small-0.25   # also small-region,"
            " small-0.4, base-0.25, on larger machines"
        ),
        (
            "pytest benchmarks/ --benchmark-only --benchmark-json=run.json && python"
            " benchmarks/page.py run.json"
        ),
        "```",
        "",
        "`ratio` is the median of stock's seconds divided by the median of xaurora's: a value",
        "above 1 means that xaurora is faster. `peak` is the most bytes of tensors at once,",
        "counted in a step after the first: weights, gradients, the optimiser's moments and",
        "activations, without scratch memory inside operations. `of matmul peak` is the share of",
        "the machine's own matrix product rate in float32. Weights are random, and the adaptive",
        "layer norms are randomised so that they are active. Timings differ between machines, and",
        "on one machine from minute to minute: compare ratios, and do not rely on differences of",
        "a hundredth. A CPU without instructions for bfloat16 skips its rows, which would take",
        "many times as long.",
        "",
        "In `head on stored latents`, a step reads its sample from a store of 100 on disk.",
        "`default` is the default head: a censored, shifted gamma law, 512 wide, decoded with",
        "overlap. `small` is a two-layer MLP for each patch, 256 wide, with a censored normal law.",
        "",
    ]
    for report in reports:
        lines += section(report)
    lines += ["## Start-up", "", *start_up(), "", "## PyTorch and JAX", "", *engines()]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", help="the file written by --benchmark-json")
    parser.add_argument(
        "--merge", action="store_true", help="the run covers some groups; keep the others"
    )
    arguments = parser.parse_args()
    if arguments.run is not None:
        report = condensed(json.loads(arguments.run.read_text(encoding="utf-8")))
        gpu = report["machine"]["gpu"]
        where = "cpu" if gpu == "none" else gpu.lower().replace(" ", "-")
        target = REPORTS / f"suite-{report['machine']['size']}-{where}.json"
        if arguments.merge and target.exists():
            before = json.loads(target.read_text(encoding="utf-8"))
            new = {row["group"] for row in report["rows"]}
            order = list(dict.fromkeys(row["group"] for row in [*before["rows"], *report["rows"]]))
            rows = [*(row for row in before["rows"] if row["group"] not in new), *report["rows"]]
            report = {**before, "rows": sorted(rows, key=lambda row: order.index(row["group"]))}
        target.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    reports = [
        json.loads(p.read_text(encoding="utf-8")) for p in sorted(REPORTS.glob("suite-*.json"))
    ]
    PAGE.write_text(page(reports), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(reports)} report(s)")


if __name__ == "__main__":
    main()
