"""`realcustom evaluate compare A B`, and the gates that give an exit status: a value that is too low, a run that is worse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.evaluation.methods import ORACLE, TEXT_ALONE
from realcustom.evaluation.results import Bootstrap, Difference, Measured, Results, by_place, compared
from realcustom.evaluation.tables import read_parquet
from realcustom.pipeline.evaluate.run import RESULTS_FILE
from realcustom.store import Store

SIGNIFICANT = 0.05  # adjusted p below which a difference counts
LOWER_IS_BETTER = ("copying@", "leak@")


def read_run(output: str, store: Store) -> list[Measured]:
    """The values of an evaluation. Raises UsageError where there is none."""
    place = storage.join(output, RESULTS_FILE)
    if not store.exists(place):
        raise UsageError(f"{output} is no output of realcustom evaluate: it has no {RESULTS_FILE}")
    return read_parquet(store.read(place))


def main_method(measured: Sequence[Measured], output: str) -> str:
    """The row that stands for a run: its one row beside text alone, the oracle and the variants of an adapter."""
    rows = dict.fromkeys(one.method for one in measured if one.method not in (ORACLE, TEXT_ALONE))
    names = [name for name in rows if not any(name.startswith(f"{other} ") for other in rows)]
    if len(names) != 1:
        raise UsageError(f"{output} has the rows {', '.join(names) or 'none'}: name one of them, as {output}#ROW")
    return names[0]


def compare_runs(first: str, second: str, bootstrap: Bootstrap) -> list[Difference]:
    """`first` minus `second`, paired by subject, prompt and seed. Each is OUTPUT or OUTPUT#ROW.

    Raises UsageError where they share no images.
    """
    store = Store()
    runs = []
    for text in (first, second):
        output, _, row = text.partition("#")
        measured = read_run(output, store)
        name = row or main_method(measured, output)
        if name not in {one.method for one in measured}:
            raise UsageError(f"{output} has no row '{name}'")
        runs.append((name, measured))
    (mine, here), (other, there) = runs
    values, others = by_place(here), by_place(there)
    metrics = [metric for method, metric in values if method == mine]
    found = compared(values, mine, other, list(dict.fromkeys(metrics)), bootstrap, others)
    if not found:
        raise UsageError(f"{first} and {second} share no metric of the same subjects, prompts and seeds")
    return found


def lines(differences: Sequence[Difference]) -> Iterator[str]:
    """A line a metric."""
    for one in differences:
        value = one.value
        yield (
            f"{one.metric}: {one.method} - {one.other} = {value.mean:+.4f} [{value.low:+.4f}, {value.high:+.4f}], "
            f"p {one.adjusted_p:.4f} (Holm), {value.images} pairs, {value.needed} images to see 0.01"
        )


def below(results: Results, floors: Sequence[str]) -> list[str]:
    """What `--fail-below METRIC=VALUE` finds: a sentence for each row of an adapter below a floor, or without a value."""
    found = []
    for text in floors:
        metric, least = parse_floor(text)
        if metric not in results.metrics:
            raise UsageError(f"--fail-below {text}: the table has no {metric}; it has {', '.join(results.metrics)}")
        for method in results.methods:
            if method in (ORACLE, TEXT_ALONE):
                continue
            value = results.cells[method, metric].value
            if value is None or value.mean < least:
                found.append(
                    f"{method}: {metric} is {'missing' if value is None else f'{value.mean:.4f}'}, below {least:g}"
                )
    return found


def parse_floor(text: str) -> tuple[str, float]:
    """`METRIC=VALUE`. Raises UsageError for another form."""
    metric, sign, value = text.rpartition("=")
    try:
        return metric, float(value if sign and metric else "none")
    except ValueError as error:
        raise UsageError(f"--fail-below wants METRIC=VALUE, got '{text}'") from error


def worse(output: str, other: str, bootstrap: Bootstrap) -> list[str]:
    """What `--not-worse-than RUN` finds: a sentence for each metric in which `output` is significantly worse."""
    found = []
    for one in compare_runs(output, other, bootstrap):
        loss = one.value.mean if one.metric.startswith(LOWER_IS_BETTER) else -one.value.mean
        if loss > 0 and one.adjusted_p < SIGNIFICANT:
            found.append(f"{one.metric} is worse than that of {other} by {loss:.4f}, p {one.adjusted_p:.4f} (Holm)")
    return found
