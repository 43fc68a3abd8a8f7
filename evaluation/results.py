"""What an evaluation says: values, the table with its intervals, paired differences, and findings about copies and the like."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from realcustom.evaluation.clusters import Estimate, Place, difference, estimate, holm
from realcustom.evaluation.methods import ORACLE, TEXT_ALONE, WRONG

COLLAPSED = 0.01  # diversity below this share of that of text alone, whose images need not show one subject


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A metric's value of an image."""

    method: str
    subject: str
    prompt_id: str
    seed: int
    metric: str
    value: float | None  # None: missing
    image: str  # its key, or the name of a given or real picture

    @property
    def place(self) -> Place:
        """What pairs go by."""
        return self.subject, self.prompt_id, self.seed


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A method's value of a metric."""

    method: str
    metric: str
    value: Estimate | None  # None: no image has a value
    missing: int  # images whose value is missing


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A method against another one, in pairs of images of the same subject, prompt and seed."""

    method: str
    other: str
    metric: str
    value: Estimate
    adjusted_p: float  # by Holm, over the metrics of this pair of methods


@dataclass(frozen=True, kw_only=True)
class Results:
    """An evaluation's results."""

    methods: tuple[str, ...]  # in the order of the rows
    metrics: tuple[str, ...]  # in the order of the columns
    conventions: Mapping[str, str]
    measured: tuple[Measured, ...]
    cells: Mapping[tuple[str, str], Cell]  # by method and metric
    differences: tuple[Difference, ...]
    findings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """How intervals are computed."""

    confidence: float = 0.95
    resamples: int = 4000
    seed: int = 0

    def estimate(self, values: Mapping[Place, float]) -> Estimate:
        """Of values by their places."""
        return estimate(values, confidence=self.confidence, resamples=self.resamples, seed=self.seed)


def summarise(
    measured: Sequence[Measured], conventions: Mapping[str, str], methods: Sequence[str], bootstrap: Bootstrap
) -> Results:
    """The table of all values; the first method beside text alone is the one that others are compared with."""
    metrics = tuple(conventions)
    values = by_place(measured)
    counted = _missing(measured)
    cells = {
        (method, metric): Cell(
            method=method,
            metric=metric,
            value=_estimated(values.get((method, metric), {}), bootstrap),
            missing=counted[method, metric],
        )
        for method in methods
        for metric in metrics
    }
    return Results(
        methods=tuple(methods),
        metrics=metrics,
        conventions=conventions,
        measured=tuple(measured),
        cells=cells,
        differences=tuple(_differences(values, methods, metrics, bootstrap)),
        findings=tuple(find(values, methods, metrics, bootstrap)),
    )


Values = Mapping[tuple[str, str], Mapping[Place, float]]  # by method and metric


def by_place(measured: Sequence[Measured]) -> dict[tuple[str, str], dict[Place, float]]:
    """The values that are there, by method and metric."""
    values: dict[tuple[str, str], dict[Place, float]] = defaultdict(dict)
    for one in measured:
        if one.value is not None:
            values[one.method, one.metric][one.place] = one.value
    return dict(values)


def compared(
    values: Values, method: str, other: str, metrics: Sequence[str], bootstrap: Bootstrap, others: Values | None = None
) -> list[Difference]:
    """`method` minus `other` (of `others`, if that is given) in every metric that both have."""
    found = {}
    for metric in metrics:
        second = (others if others is not None else values).get((other, metric), {})
        pairs = difference(values.get((method, metric), {}), second)
        if len({place[0] for place in pairs}) >= 2:
            found[metric] = bootstrap.estimate(pairs)
    adjusted = holm([value.p for value in found.values()])
    return [
        Difference(method=method, other=other, metric=metric, value=value, adjusted_p=p)
        for (metric, value), p in zip(found.items(), adjusted, strict=True)
    ]


def _differences(
    values: Values, methods: Sequence[str], metrics: Sequence[str], bootstrap: Bootstrap
) -> list[Difference]:
    rows = [method for method in methods if method not in (ORACLE, TEXT_ALONE)]
    if not rows:
        return []
    first = rows[0]
    pairs = [(first, TEXT_ALONE)] if TEXT_ALONE in methods else []
    pairs += [(method, first) for method in rows[1:]]
    return [one for method, other in pairs for one in compared(values, method, other, metrics, bootstrap)]


def _estimated(values: Mapping[Place, float], bootstrap: Bootstrap) -> Estimate | None:
    return bootstrap.estimate(values) if len({place[0] for place in values}) >= 2 else None


def _missing(measured: Sequence[Measured]) -> dict[tuple[str, str], int]:
    counted: dict[tuple[str, str], int] = defaultdict(int)
    for one in measured:
        counted[one.method, one.metric] += one.value is None
    return counted


def find(values: Values, methods: Sequence[str], metrics: Sequence[str], bootstrap: Bootstrap) -> list[str]:
    """A sentence for each method that a row shows to copy, to ignore the subject, to collapse, or to bring a background."""
    found: list[str] = []
    for method in methods:
        if method in (ORACLE, TEXT_ALONE) or method.endswith(WRONG):
            continue
        for metric in metrics:
            kind, mine = metric.partition("@")[0], values.get((method, metric), {})
            if not mine:
                continue
            plain = values.get((TEXT_ALONE, metric), {})
            if kind.startswith(("clip_i", "dino_i")):
                found += _copies(method, metric, mine, values.get((ORACLE, metric), {}), bootstrap)
                found += _ignores(method, metric, mine, plain, bootstrap)
            elif kind == "diversity":
                found += _collapses(method, metric, mine, plain)
            elif kind == "leak":
                found += _leaks(method, metric, mine, plain, bootstrap)
    return found


def _copies(
    method: str, metric: str, mine: Mapping[Place, float], real: Mapping[Place, float], bootstrap: Bootstrap
) -> list[str]:
    above = bootstrap_of_means(mine, real, bootstrap)
    if above is None or above.low <= 0:
        return []
    return [
        f"{method} copies: its {metric} is above that of the real pictures among themselves by {above.mean:.3f} "
        f"[{above.low:.3f}, {above.high:.3f}]"
    ]


def bootstrap_of_means(
    first: Mapping[Place, float], second: Mapping[Place, float], bootstrap: Bootstrap
) -> Estimate | None:
    """Difference of subjects' means, for rows that share subjects, not prompts; None for fewer than two such subjects."""
    means = [_subject_means(values) for values in (first, second)]
    pairs = difference(means[0], means[1])
    return bootstrap.estimate(pairs) if len(pairs) >= 2 else None


def _subject_means(values: Mapping[Place, float]) -> dict[Place, float]:
    grouped: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for subject, prompt, seed in sorted(values, key=str):
        grouped[subject][prompt].append(values[subject, prompt, seed])
    return {
        (subject, "", 0): sum(sum(v) / len(v) for v in prompts.values()) / len(prompts)
        for subject, prompts in grouped.items()
    }


def _ignores(
    method: str, metric: str, mine: Mapping[Place, float], plain: Mapping[Place, float], bootstrap: Bootstrap
) -> list[str]:
    pairs = difference(mine, plain)
    if len({place[0] for place in pairs}) < 2:
        return []
    gain = bootstrap.estimate(pairs)
    if gain.low > 0:
        return []
    return [
        f"{method} does not show its subjects: its {metric} is not above that of text alone, {gain.mean:+.3f} "
        f"[{gain.low:.3f}, {gain.high:.3f}]"
    ]


def _collapses(method: str, metric: str, mine: Mapping[Place, float], plain: Mapping[Place, float]) -> list[str]:
    own = sum(mine.values()) / len(mine)
    least = COLLAPSED * sum(plain.values()) / len(plain) if plain else 1e-3
    if own >= least:
        return []
    return [f"{method} draws nearly one image for all seeds: its {metric} is {own:.4f}, below {least:.4f}"]


def _leaks(
    method: str, metric: str, mine: Mapping[Place, float], plain: Mapping[Place, float], bootstrap: Bootstrap
) -> list[str]:
    pairs = difference(mine, plain) if plain else dict(mine)
    if len({place[0] for place in pairs}) < 2:
        return []
    leaked = bootstrap.estimate(pairs)
    if leaked.low <= 0:
        return []
    return [
        f"{method} brings the reference's background along: its {metric} is above {'that of text alone' if plain else '0'} by "
        f"{leaked.mean:.3f} [{leaked.low:.3f}, {leaked.high:.3f}]"
    ]


def plain_data(results: Results) -> list[dict[str, Any]]:
    """One entry a cell, for files."""
    rows = []
    for method in results.methods:
        for metric in results.metrics:
            cell = results.cells[method, metric]
            entry: dict[str, Any] = {"method": method, "metric": metric, "missing": cell.missing}
            names = ("mean", "low", "high", "images", "needed")
            entry |= {name: None if cell.value is None else getattr(cell.value, name) for name in names}
            rows.append(entry)
    return rows
