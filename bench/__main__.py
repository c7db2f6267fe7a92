"""`make bench`: one run, one table of ratios, one JSON file."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.figure import Figure
from bench.measure import measure_all


def main() -> int:
    """Run every measurement, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each pgbench run (default 4)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the bulk read (default 1,000,000)")
    parser.add_argument("--stay", type=int, default=80, help="idle connections of the memory figure (default 80)")
    parser.add_argument("--json", type=Path, default=Path("bench/results/latest.json"))
    args = parser.parse_args()
    console = Console()
    with console.status("starting PostgreSQL, the gateway and its doors") as status:
        figures = list(measure_all(args.seconds, args.rows, args.stay, lambda text: status.update(text)))
    console.print(_table(figures))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(_report(figures), indent=2) + "\n", encoding="utf-8")
    console.print(f"written to {args.json}")
    return 0


def _table(figures: list[Figure]) -> Table:
    table = Table(title="through the wire door against a direct connection, same run, same machine")
    for column, justify in (
        ("what", "left"),
        ("unit", "left"),
        ("direct", "right"),
        ("countersign", "right"),
        ("ratio", "right"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]  # rich's literal type
    for f in figures:
        direct = "—" if f.direct is None else f"{f.direct:,.3f}"
        ratio = "—" if f.ratio is None else f"{f.ratio:.2f} x"
        table.add_row(f.name, f.unit, direct, f"{f.ours:,.3f}", ratio)
    return table


def _report(figures: list[Figure]) -> dict[str, object]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "figures": [
            {"name": f.name, "unit": f.unit, "direct": f.direct, "countersign": f.ours, "ratio": f.ratio}
            for f in figures
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
