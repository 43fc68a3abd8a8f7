"""The verb `realcustom evaluate`, and `realcustom evaluate compare`."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from realcustom.errors import UsageError
from realcustom.pipeline.cli.options import Address, Base, SettingsOptions, add_verb
from realcustom.sampling import MAX_SEED, SamplingParams

if TYPE_CHECKING:
    from realcustom.evaluation.results import Bootstrap
    from realcustom.pipeline.recipes import RunSettings

USED = ("base", "adapter", "method.image_encoder", "evaluate", "preprocess.subjects", "preprocess.compute")
FAILED = 4  # exit status of a gate that does not hold
RUN = "run"


class _RunUnlessNamed(TyperGroup):
    """`evaluate --suite ...` is `evaluate run --suite ...`: the verb has options of its own beside its one other command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As click's."""
        return super().parse_args(ctx, args if args and args[0] in self.commands else [RUN, *args])


app = typer.Typer(
    cls=_RunUnlessNamed,
    help="Draw a suite's images with adapters, measure them, write tables and a page.",
    rich_markup_mode=None,
)


def run(
    suite: Annotated[str, typer.Option(metavar="NAME", help="dreambench, dreambench_plus, omnicontext, own or drawn.")],
    output: Annotated[
        str, typer.Option(metavar="DIR", help="Images, tables, page; path or URI. What is there is not done again.")
    ],
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="FILE",
            help="Adapter, or NAME=FILE; a training run: all that it saved. May be repeated.",
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images", metavar="FOLDER", help="Somebody else's pictures: SUBJECT/PROMPT-NUMBER.png; may be repeated."
        ),
    ] = None,
    base: Base = None,
    image_encoder: Annotated[
        str | None, typer.Option(metavar="FOLDER|HUB_ID", help="Instead of the one named by the adapter.")
    ] = None,
    subjects: Annotated[str | None, typer.Option(metavar="DIR", help="The suite's folder.")] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="For own: a prompt a line, {} for the subject's word.")
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME", help="KIND@MODEL, RUBRIC@seeing or MODULE:FUNCTION; may be repeated."),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option("--row", metavar="NAME", help="Setting of a row, as text_to_image; may be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Images of a row at most.")] = None,
    fail_below: Annotated[
        list[str] | None,
        typer.Option("--fail-below", metavar="METRIC=VALUE", help="Exit status 4 if a row is below; may be repeated."),
    ] = None,
    not_worse_than: Annotated[
        str | None, typer.Option(metavar="RUN", help="Exit status 4 if significantly worse than that output.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Draw in this process, as without --workers.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Draw on Ray with so many workers.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="A GPU for each worker.")] = False,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="torch device of this process; else a GPU, if there is one.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Of the starting noise of each prompt's first image.")
    ] = 0,
    *,
    sampling: SamplingParams,
    given: SettingsOptions,
    address: Address = None,
) -> None:
    """Draw a suite's images with adapters, measure them, and write tables and a page; run again, it does only the rest."""
    settings = given.resolve("evaluate", USED)
    if local and workers is not None:
        raise UsageError("--local draws in this process, --workers on Ray: give one of them")
    if gpu and workers is None:
        raise UsageError("--gpu is for --workers; in this process give --device")
    if sampling.n != 1:
        raise UsageError("--count is set by evaluate.images_per_prompt here: give --set evaluate.images_per_prompt=N")
    from realcustom.pipeline.evaluate.compare import below, parse_floor, read_run, worse
    from realcustom.pipeline.evaluate.drawing import Where
    from realcustom.pipeline.evaluate.request import Request
    from realcustom.pipeline.evaluate.run import evaluate
    from realcustom.store import Store

    for text in fail_below or ():
        parse_floor(text)
    if not_worse_than is not None:
        read_run(not_worse_than.partition("#")[0], Store())
    if not adapters and not images and base is None and settings.adapter is not None:
        adapters = [settings.adapter]
    steps = sampling.num_inference_steps or settings.evaluate.num_inference_steps
    request = Request(
        suite=suite,
        base=base or settings.base,
        output=output,
        adapters=tuple(adapters or ()),
        images=tuple(images or ()),
        image_encoder=image_encoder,
        subjects=subjects,
        prompts=prompts,
        metrics=tuple(metrics or ()),
        rows=tuple(rows or ()),
        limit=limit,
        sampling=dataclasses.replace(sampling, seed=seed, num_inference_steps=steps),
        where=Where(workers=workers, gpu=gpu, device=device, address=address),
    )
    results = evaluate(request, settings)
    from realcustom.evaluation.tables import markdown

    print(markdown(results))
    print(f"{output.rstrip('/')}/index.html")
    failed = below(results, fail_below or ())
    if not_worse_than is not None:
        failed += worse(output, not_worse_than, _bootstrap(settings))
    for sentence in failed:
        sys.stderr.write(f"failed: {sentence}\n")
    if failed:
        raise typer.Exit(FAILED)


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="Output of an evaluation, or OUTPUT#ROW.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The one that it is compared with.")],
) -> None:
    """Paired differences of two evaluations: the same subject, prompt and seed; p adjusted by Holm."""
    from realcustom.evaluation.results import Bootstrap
    from realcustom.pipeline.evaluate.compare import compare_runs, lines

    for line in lines(compare_runs(first, second, Bootstrap())):
        print(line)


def _bootstrap(settings: RunSettings) -> Bootstrap:
    from realcustom.evaluation.results import Bootstrap

    evaluate = settings.evaluate
    return Bootstrap(confidence=evaluate.confidence, resamples=evaluate.resamples, seed=evaluate.seed)


add_verb(
    app,
    run,
    "realcustom evaluate --suite drawn --output outputs/evaluate",
    "realcustom evaluate --suite own --subjects photos --prompts prompts.txt --adapter adapter.safetensors "
    "--base FOLDER --output outputs/own",
    name=RUN,
)
add_verb(app, compare, "realcustom evaluate compare outputs/a outputs/b")
