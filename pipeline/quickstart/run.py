"""The whole system in one run: a synthetic corpus, six stages, training, the endpoint, the table, a page.

Nothing is special to the quickstart: each part is the function that its verb of the command line calls.
"""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realcustom import config, storage
from realcustom.leases import only_writer
from realcustom.machine import torch_threads
from realcustom.pipeline import cluster, configure
from realcustom.pipeline.quickstart import endpoint
from realcustom.pipeline.quickstart.clock import Clock
from realcustom.pipeline.quickstart.results import Results, Trained
from realcustom.pipeline.recipes import RunSettings
from realcustom.preprocessing.catalogue import CHAIN
from realcustom.store import Store, refusals

if TYPE_CHECKING:
    from realcustom.evaluation.table import Case, Row
    from realcustom.pipeline.quickstart.film import Films
    from realcustom.pipeline.quickstart.learning import Measured

logger = logging.getLogger(__name__)

DRAWINGS = 32  # images that the diffusion model is measured on


def run(
    output: Path,
    settings: RunSettings,
    *,
    pictures: int = 240,
    initial_adapter: str | None = None,
    address: str | None = None,
) -> Path:
    """Run everything below `output` and return the page's path.

    Args:
        output: a folder; finished stages in it are not done again.
        settings: a complete run; its models must be those of the synthetic world.
        pictures: number of pictures of the corpus, unless `output` has one already.
        initial_adapter: an adapter checkpoint to start the training from; None = random weights.
        address: of a Ray cluster; None = an embedded one.
    Raises:
        UsageError: another run works in `output`.
    """
    cluster.check_address(address)
    with only_writer(str(output / "leases"), str(output), Store()):
        return _run(output, settings, pictures, initial_adapter, address)


def _run(output: Path, settings: RunSettings, pictures: int, initial_adapter: str | None, address: str | None) -> Path:
    clock = Clock(parts=7)
    Store().write(output / "settings.yaml", configure.to_yaml(settings).encode())
    corpus = _draw_corpus(output, pictures, clock)
    with contextlib.ExitStack() as stack:
        with clock.timed("ray"):
            stack.enter_context(cluster.connected(address))
        directories, stages = _preprocess(output, corpus, settings, clock)
        trained = _train(output, directories["encode"], settings, initial_adapter, clock)
        with endpoint.served(settings, trained.result.adapter, clock) as url:
            request = endpoint.ask(url, settings, clock)
            table, cases = endpoint.measure(url, settings, clock)
    learned, shipped, films = _look_closer(settings, trained, request["case"], cases, clock)
    results = Results(
        output=output,
        settings=settings,
        corpus=corpus,
        directories=directories,
        stages=stages,
        trained=trained,
        request=request,
        table=table,
        cases=cases,
        learned=learned,
        shipped=shipped,
        films=films,
        reused=clock.reused,
    )
    return _report(results, clock)


def _draw_corpus(output: Path, pictures: int, clock: Clock) -> str:
    from realcustom.sprites.corpus import CorpusSettings, write_corpus

    with clock.heading("Drawing a corpus of image-text pairs, some corrupted on purpose"), clock.timed("corpus"):
        corpus = str(output / "corpus")
        if Store().exists(storage.join(corpus, "truth.parquet")):
            clock.reused.append("corpus")
        else:
            with refusals("write", corpus):
                write_corpus(corpus, CorpusSettings(pictures=pictures))
    return corpus


def _preprocess(
    output: Path, corpus: str, settings: RunSettings, clock: Clock
) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    from realcustom.preprocessing.run import run_stage

    source, root = storage.join(corpus, "shards"), str(output / "stages")
    directories, reports = {}, {}
    with clock.heading("Ray Data: six stages from pictures to training records"):
        for stage in CHAIN:
            with clock.timed(stage.name):
                result = run_stage(stage, source, root, settings.for_stages(), method=settings.method)
            if not result.units_run:
                clock.reused.append(stage.name)
            source = directories[stage.name] = result.directory
            reports[stage.name] = {
                key: result.report[key] for key in ("in", "kept", "dropped", "quarantined", "rows_out")
            }
    return directories, reports


def _train(output: Path, records: str, settings: RunSettings, initial_adapter: str | None, clock: Clock) -> Trained:
    from realcustom.training.run import train

    begun = "random weights" if initial_adapter is None else initial_adapter
    folder = output / ("training" if initial_adapter is None else "training-further")
    result_file = folder / "result.json"
    before = result_file.stat().st_mtime_ns if result_file.exists() else None
    with clock.heading(f"Ray Train: adapter and scoring module on two workers, from {begun}"), clock.timed("training"):
        result = train(
            records=records,
            output=str(folder),
            base=settings.base,
            image_encoder=None,
            method=settings.method,
            settings=settings.train,
            initial_adapter=initial_adapter,
        )
    if result_file.stat().st_mtime_ns == before:
        clock.reused.append("training")
    return Trained(result=result, output=str(folder), initial_adapter=initial_adapter)


def _look_closer(
    settings: RunSettings, trained: Trained, asked: Case, cases: list[Case], clock: Clock
) -> tuple[list[Measured], Row | None, list[Films]]:
    """In this process: adapters saved on the way, the shipped one, and drawings step by step."""
    from realcustom.diffusion_pipeline import RealCustomPipeline
    from realcustom.pipeline.quickstart import film, learning
    from realcustom.pipeline.quickstart.cases import DrawnJudge

    judge, threads = DrawnJudge(), settings.serve.threads
    saved = learning.saved_on_the_way(trained.output, settings.train.steps)
    closer = clock.heading("Looking closer: what it had learned on the way, and its drawings step by step")
    with closer, torch_threads(threads):  # as few as the endpoint's: small models, on a machine that may be busy
        pipeline = RealCustomPipeline.from_pretrained(
            settings.base, adapter=trained.result.adapter, image_encoder=settings.method.image_encoder.model
        )
        pipeline.set_progress_bar_config(disable=True)  # a command's progress is log lines

        def measured(name: str, adapter: str) -> Row:
            other = pipeline.with_adapter(adapter)
            other.set_progress_bar_config(disable=True)
            return learning.measure(name, other, cases, judge, settings.evaluate)

        with clock.timed("learned"):
            learned = [
                learning.Measured(step=step, row=measured(f"after {step} steps", file)) for step, file in saved.items()
            ]
            shipped = measured("the shipped adapter", settings.adapter) if settings.adapter else None
        with clock.timed("films"):
            chosen = [cases[:2][-1], asked, film.photograph_case()]
            films = [film.draw_films(pipeline, case) for case in chosen if case is not None]
    return learned, shipped, films


def _report(results: Results, clock: Clock) -> Path:
    from realcustom.evaluation.table import Setting
    from realcustom.pipeline.quickstart import next_steps, page, truth
    from realcustom.sprites.inspect_zoo import inspect_zoo

    trained, table, output = results.trained.result, results.table, results.output
    with clock.heading("Writing the page"):
        drawn = truth.read_truth(results.corpus)
        captioned = truth.read_table(results.directories["caption"], ["uid", "synthetic_caption"])
        records = truth.read_table(results.directories["encode"])
        with clock.timed("models"), torch_threads(results.settings.serve.threads):
            models = truth.measure_models(captioned, records, drawn) | inspect_zoo(DRAWINGS, names=("pipeline",))
        clock.seconds["total"] = clock.total()
        report = {
            "stages": results.stages,
            "models": models,
            "training": {
                "initial_adapter": results.trained.initial_adapter,
                "loss_before": trained.loss_before,
                "loss_after": trained.loss_after,
                "adapter_sha256": trained.sha256,
                "learned": [{"steps": one.step, **one.row.to_dict()} for one in results.learned],
            },
            **table.to_dict(),
            "shipped": None if results.shipped is None else results.shipped.to_dict(),
            "reused": results.reused,
            "seconds": clock.seconds,
            "settings": config.to_dict(results.settings),
        }
        Store().write(output / next_steps.SUBJECT, next_steps.subject_png(results))
        page.write_page(output / "index.html", page.content(report, results, records, drawn))
        Store().write(output / "report.json", json.dumps(report, indent=1).encode())
    rows = {row.setting: row.similarity.mean for row in table.rows}
    print(
        f"Done in {clock.total() / 60:.1f} minutes: similarity with the subject {rows[Setting.TEXT_TO_IMAGE]:.2f} by text alone, "
        f"{rows[Setting.SUBJECT_WITH_MASK]:.2f} with what was trained. Look at {output / 'index.html'}"
    )
    print("What to try next:")
    for step in next_steps.next_steps(results):
        print(f"  # {step['why']}\n  {step['command']}")
    return output / "index.html"
