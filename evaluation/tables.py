"""Results as files: Markdown, CSV, LaTeX and Parquet. Equal results give equal bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from operator import attrgetter

import pyarrow as pa
import pyarrow.parquet as pq

from realcustom.evaluation.clusters import SMALL
from realcustom.evaluation.results import Cell, Difference, Measured, Results, plain_data

NOTHING = "–"  # a cell without a value, never 0


def markdown(results: Results) -> str:
    """The table, its differences, findings and conventions."""
    lines = [f"**{finding}.**\n" for finding in results.findings]
    lines += _markdown_table(
        ["row", *results.metrics],
        [[method, *(_cell(results.cells[method, metric]) for metric in results.metrics)] for method in results.methods],
    )
    lines.append(
        "\nMeans over subjects, [interval of 95 % unless settings.yaml says otherwise] by bootstrap over subjects, then "
        "prompts.\n"
    )
    if results.differences:
        lines += _markdown_table(
            ["difference, paired", "metric", "mean", "p (Holm)", f"images to see {SMALL}"],
            [
                [
                    f"{one.method} − {one.other}",
                    one.metric,
                    _interval(one),
                    f"{one.adjusted_p:.4f}",
                    str(one.value.needed),
                ]
                for one in results.differences
            ],
        )
        lines.append("")
    lines += [f"* `{metric}`: {convention}" for metric, convention in results.conventions.items()]
    return "\n".join(lines) + "\n"


def comma_separated(results: Results) -> str:
    """One line a row and metric."""
    rows = plain_data(results)
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else ["method", "metric"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def latex(results: Results) -> str:
    """A `tabular`."""
    head = " & ".join(["", *map(_tex, results.metrics)])
    body = [
        " & ".join([_tex(method), *(_tex(_cell(results.cells[method, metric])) for metric in results.metrics)])
        for method in results.methods
    ]
    columns = "l" + "r" * len(results.metrics)
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\hline", f"{head} \\\\", "\\hline", *(f"{row} \\\\" for row in body)]
    return "\n".join([*lines, "\\hline", "\\end{tabular}"]) + "\n"


def parquet(measured: Sequence[Measured]) -> bytes:
    """One row an image and metric, sorted."""
    schema = pa.schema(
        [(name, pa.string()) for name in ("method", "subject", "prompt_id")]
        + [("seed", pa.int64()), ("metric", pa.string()), ("value", pa.float64()), ("image", pa.string())]
    )
    rows = sorted(map(attrgetter(*schema.names), measured), key=lambda row: tuple(map(str, row)))
    columns = {name: [row[index] for row in rows] for index, name in enumerate(schema.names)}
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pydict(columns, schema=schema), buffer)
    return buffer.getvalue()


def read_parquet(data: bytes) -> list[Measured]:
    """What `parquet` wrote."""
    return [Measured(**row) for row in pq.ParquetFile(io.BytesIO(data)).read().to_pylist()]


def _cell(cell: Cell) -> str:
    if cell.value is None:
        return f"{NOTHING} ({cell.missing} missing)" if cell.missing else NOTHING
    missing = f" ({cell.missing} missing)" if cell.missing else ""
    return f"{cell.value.mean:.3f} [{cell.value.low:.3f}, {cell.value.high:.3f}]{missing}"


def _interval(one: Difference) -> str:
    return f"{one.value.mean:+.3f} [{one.value.low:+.3f}, {one.value.high:+.3f}]"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def _tex(text: str) -> str:
    for sign in "_%&#":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("–", "--").replace("−", "$-$")
