"""The columns of an evaluation's table: metrics by their names, with the models that they need."""

from __future__ import annotations

from dataclasses import replace

from realcustom.evaluation.metrics import Embedder, Metric, is_clip, make_metric, parse
from realcustom.evaluation.rubrics import rubric_named
from realcustom.evaluation.scorers import SeeingColumn, own_function, score_metrics
from realcustom.evaluation.seeing import SeeingJudge
from realcustom.evaluation.suite import Photos, Reference, Suite
from realcustom.evaluation.views import Views
from realcustom.pipeline.evaluate.request import Request
from realcustom.pipeline.recipes import RunSettings
from realcustom.store import Store


class Columns:
    """The metrics that are asked for, made before anything is drawn. Raises UsageError for one that cannot be."""

    def __init__(self, request: Request, settings: RunSettings, photos: Photos, store: Store) -> None:
        from realcustom.pipeline.evaluate.masks import SubjectSegmenter

        self.metrics: list[Metric] = []
        self._seeing: list[SeeingColumn] = []
        self._embedder_of: dict[str, Embedder] = {}  # by the column's name
        self._embedders: dict[tuple[str, bool], Embedder] = {}
        segmenter = SubjectSegmenter.of(settings.preprocess)
        self._views = Views(request.output, photos, segmenter, store)
        self._request, self._settings, self._photos, self._store = request, settings.evaluate, photos, store
        if request.suite == "drawn":
            from realcustom.pipeline.evaluate.drawn import DrawnScorer

            self.metrics += score_metrics(DrawnScorer(), request.output, photos, store)
        for name in request.metrics or (() if request.suite == "drawn" else self._settings.metrics):
            self.metrics += self._make(name)

    def with_masks(self, suite: Suite, wrong_too: bool) -> Suite:
        """The suite with a mask for every picture that is given, and with `wrong_too` for the wrong references.

        Raises UsageError where the suite has no mask and the segmenter finds none.
        """

        def masked(one: Reference) -> Reference:
            wrong = one.wrong
            if wrong is not None and wrong_too:
                wrong = self._views.masked(wrong, one.word)
            return replace(one, given=self._views.masked(one.given, one.word), wrong=wrong)

        cases = (replace(case, references=tuple(map(masked, case.references))) for case in suite.cases)
        return replace(suite, cases=tuple(cases))

    def conventions(self) -> dict[str, str]:
        """What each column says, by its name."""
        return {
            metric.name: f"{metric.convention}; pictures: {self._embedder_of[metric.name].preprocessing()}"
            if metric.name in self._embedder_of
            else metric.convention
            for metric in self.metrics
        }

    def notes(self) -> list[str]:
        """What is to be said below the table."""
        return [note for column in self._seeing for note in column.notes()]

    def _make(self, name: str) -> list[Metric]:
        output = self._request.output
        if name.endswith("@seeing"):
            judge = SeeingJudge(self._settings.seeing, rubric_named(name.removesuffix("@seeing")))
            self._seeing.append(SeeingColumn(judge, output, self._photos, self._store))
            return [self._seeing[-1].metric]
        if ":" in name and "@" not in name:
            return score_metrics(own_function(name), output, self._photos, self._store)
        kind, model, label = parse(name, self._settings.models)
        embedder = self._embedders.get((model, is_clip(kind)))
        if embedder is None:
            device = self._request.where.device
            embedder = Embedder(model, is_clip(kind), output, self._views, device, self._store)
            self._embedders[model, is_clip(kind)] = embedder
        self._embedder_of[label] = embedder
        return [make_metric(kind, label, embedder)]
