"""`realcustom evaluate`: images first, then numbers. What is there already is neither drawn nor computed again."""

from __future__ import annotations

import _thread
import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from realcustom import config, storage
from realcustom.errors import UsageError
from realcustom.evaluation import tables
from realcustom.evaluation.gallery import Facts, Gallery
from realcustom.evaluation.given import real_images
from realcustom.evaluation.methods import (
    AdapterFile,
    Method,
    make_methods,
)
from realcustom.evaluation.metrics import Judged, Metric
from realcustom.evaluation.results import Bootstrap, Measured, Results, summarise
from realcustom.evaluation.suite import Photo, Photos, Suite
from realcustom.evaluation.table import Setting
from realcustom.leases import only_writer
from realcustom.machine import torch_threads
from realcustom.pipeline.configure import to_yaml
from realcustom.pipeline.evaluate.columns import Columns
from realcustom.pipeline.evaluate.drawing import draw_missing
from realcustom.pipeline.evaluate.request import (
    SETTINGS_FILE,
    Request,
    check_output,
    check_places,
    decided_by,
    read_adapters,
    read_given,
    read_rows,
    read_suite,
)
from realcustom.pipeline.recipes import RunSettings
from realcustom.store import Store, check_writable

logger = logging.getLogger(__name__)

RESULTS_FILE = "results.parquet"


def evaluate(request: Request, settings: RunSettings) -> Results:
    """Draw what is missing, measure what is missing, write the tables and the page; returns the results.

    Raises UsageError, before anything is drawn or written, for what is wrong with the request or the suite, and where another
    program, which it names, evaluates into the same output; and where one began to, as this one was halted or without the store
    for longer than its lease lasts.
    """
    store = Store()
    check_places(request)
    check_writable(request.output)
    lost: list[str] = []

    def stop(reason: str) -> None:
        lost.append(reason)
        _thread.interrupt_main()

    try:
        with only_writer(storage.join(request.output, "leases"), request.output, store, stop):
            return _evaluate(request, settings, store)
    except KeyboardInterrupt:
        if not lost:
            raise
        raise UsageError(f"{lost[0]}: wait for that, then run again") from None


def _evaluate(request: Request, settings: RunSettings, store: Store) -> Results:
    identity, rows = decided_by(request, settings), read_rows(request)
    check_output(request.output, {"suite": request.suite, "base": identity["base"]}, store)
    adapters, photos = read_adapters(request, settings, store), Photos(store)
    methods = make_methods(adapters, rows, identity)
    columns = Columns(request, settings, photos, store)
    suite = read_suite(request, settings, store)
    photos.check(list(suite.photos().values()))
    if any(adapter.cut_out for adapter in adapters):
        suite = columns.with_masks(suite, wrong_too=Setting.WRONG_REFERENCE in rows)
    given = read_given(request, suite, {method.name for method in methods}, store)
    description = _describe(request, settings, suite, adapters, columns, identity)
    store.write(storage.join(request.output, SETTINGS_FILE), to_yaml(description).encode())
    with torch_threads(settings.evaluate.threads):
        judged, speed = _draw(request, settings, suite, methods, photos, Gallery(request.output, store))
        judged += given + (real_images(suite) if Setting.ORACLE in rows else [])
        measured = [value for metric in columns.metrics for value in _measured(metric, judged)]
    names = list(dict.fromkeys(image.method for image in judged))
    bootstrap = Bootstrap(
        confidence=settings.evaluate.confidence, resamples=settings.evaluate.resamples, seed=settings.evaluate.seed
    )
    results = summarise(measured, columns.conventions(), names, bootstrap)
    results = replace(results, findings=(*results.findings, *columns.notes()))
    _write(request, results, judged, description, speed, store)
    return results


def _describe(
    request: Request,
    settings: RunSettings,
    suite: Suite,
    adapters: Sequence[AdapterFile],
    columns: Columns,
    identity: Mapping[str, Any],
) -> dict[str, Any]:
    """settings.yaml: how the table can be made again."""
    return {
        "suite": {"name": suite.name, "counts": suite.counts, "subjects": request.subjects, "prompts": request.prompts},
        "base": identity["base"],
        "adapters": {adapter.name: {"file": adapter.file, "sha256": adapter.sha256} for adapter in adapters},
        "images": list(request.images),
        "rows": [setting.value for setting in read_rows(request)],
        "limit": request.limit,
        "image": {name: value for name, value in identity.items() if name != "base"},
        "seed": request.sampling.seed or 0,
        "metrics": columns.conventions(),
        "evaluate": config.to_dict(settings.evaluate),
    }


def _draw(
    request: Request, settings: RunSettings, suite: Suite, methods: Sequence[Method], photos: Photos, gallery: Gallery
) -> tuple[list[Judged], dict[str, dict[str, float]]]:
    """The images of all methods, drawn where they are missing, and what they cost, by method."""
    logger.info("%s", suite.counts)
    draw_missing(request, settings.evaluate, suite.cases, methods, photos, gallery)
    judged, speed = [], {}
    for method in methods:
        keys = [method.key(case, photos) for case in suite.cases]
        facts = gallery.facts(keys)
        photos.remember({gallery.uri(key): fact.sha256 for key, fact in facts.items()})
        speed[method.name] = _cost(list(facts.values()))
        judged += [
            Judged(method=method.name, case=case, photo=Photo(uri=gallery.uri(key)))
            for case, key in zip(suite.cases, keys, strict=True)
        ]
    return judged, speed


def _cost(facts: Sequence[Facts]) -> dict[str, float]:
    """Of images as they were drawn."""
    return {
        "images": len(facts),
        "unet_rows_per_image": round(statistics.fmean(fact.forwards for fact in facts), 3),
        "median_seconds_per_image": round(statistics.median(fact.seconds for fact in facts), 4),
        "peak_bytes": max(fact.peak_bytes for fact in facts),
    }


def _measured(metric: Metric, judged: Sequence[Judged]) -> list[Measured]:
    logger.info("%s of %d images", metric.name, len(judged))
    return metric.measure(judged)


def _write(
    request: Request,
    results: Results,
    judged: Sequence[Judged],
    description: Mapping[str, Any],
    speed: Mapping[str, Any],
    store: Store,
) -> None:
    from realcustom.pipeline.evaluate.page import page

    files = {
        RESULTS_FILE: tables.parquet(results.measured),
        "speed.json": json.dumps(speed, indent=1).encode(),
        "table.csv": tables.comma_separated(results).encode(),
        "table.tex": tables.latex(results).encode(),
        "table.md": tables.markdown(results).encode(),
        "index.html": page(request.output, results, judged, description, speed, store, request.adapters),
    }
    for name, data in files.items():
        store.write(storage.join(request.output, name), data)
