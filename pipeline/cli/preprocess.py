"""The verbs `realcustom preprocess ...`: each stage is a command of its own; `filter` is two in a row, `all` is six."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from realcustom.errors import UsageError
from realcustom.pipeline.cli import options
from realcustom.pipeline.cli.options import DEFAULT_RECIPE, settings_of
from realcustom.pipeline.inputs import require_path
from realcustom.preprocessing.catalogue import (
    CATALOGUE,
    CHAIN,
    ENCODE,
    INGEST,
    SCORE,
    SELECT,
)
from realcustom.preprocessing.engine.stage import Stage

preprocess = typer.Typer(
    help="From an image-text corpus to training records: ingest, score, select, caption, subjects, encode.",
    epilog="Each stage reads the directory that the one before printed; run again, it does only what is not done.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Input = Annotated[
    str, typer.Option("--input", metavar="DIR", help="What the stage before wrote, or a table in its schema.")
]
Source = Annotated[
    str,
    typer.Option(
        "--input", metavar="DIR", help="webdataset shards, Parquet tables, a folder of pictures, or a table of URLs."
    ),
]
Output = Annotated[
    str, typer.Option("--output", metavar="ROOT", help="Root of all stages; the directory made below it is printed.")
]
Local = Annotated[bool, typer.Option("--local", help="In this process, without Ray: for a few pictures.")]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Do at most N units more.")]
DryRun = Annotated[
    int | None,
    typer.Option("--dry-run", metavar="N", min=1, help="Try N units, write nothing, say what all would take."),
]
HourlyPrice = Annotated[
    float | None, typer.Option("--hourly-price", metavar="PRICE", min=0.0, help="With --dry-run: of one worker.")
]
Metadata = Annotated[
    str | None, typer.Option("--metadata", metavar="CSV", help="Table that describes a folder's pictures.")
]
Join = Annotated[
    str | None,
    typer.Option("--join", metavar="PART=COLUMN", help="Whose row is whose; PART: folder, stem, file or path."),
]
CaptionTemplate = Annotated[
    str | None,
    typer.Option(
        "--caption-template", metavar="TEXT", help='As "a photo of a {class}": columns of the CSV, or a PART.'
    ),
]


@dataclass(frozen=True, kw_only=True)
class _How:
    """The options that say how a verb runs."""

    local: bool
    limit: int | None
    dry_run: int | None
    hourly_price: float | None
    recipe: str
    config: options.ConfigFiles
    sets: options.Sets
    print_config: bool
    address: str | None


def _run(name: str, stages: Sequence[Stage], input: str, output: str, how: _How, source: dict[str, Any]) -> None:
    used = [f"preprocess.{section}" for section in (*(stage.name for stage in stages), "compute", "execution")]
    if ENCODE in stages:
        used.append("method.image_encoder")
    given = {key: value for key, value in source.items() if value is not None}
    over = {"preprocess": {"ingest": given}} if given else None
    settings = settings_of(how.recipe, how.config, how.sets, how.print_config, f"preprocess {name}", used, over)
    require_path(input, "--input", "folder or table")
    if how.dry_run is None and how.hourly_price is not None:
        options.warn("--hourly-price has no effect without --dry-run")
    if how.dry_run is not None:
        if how.limit is not None:
            raise UsageError("--dry-run tries units and keeps nothing, --limit keeps them: give one of the two")
        from realcustom.pipeline.dry_run import dry_run

        lines = dry_run(stages, input, settings, units=how.dry_run, hourly_price=how.hourly_price)
    else:
        from realcustom.pipeline.stages import run_stages

        lines = run_stages(stages, input, output, settings, local=how.local, limit=how.limit, address=how.address)
    for line in lines:
        print(line, flush=True)


def _stage_verb(name: str, stages: Sequence[Stage]) -> Callable[..., None]:
    """A verb that reads what a stage wrote."""

    def verb(
        input: Input,
        output: Output,
        local: Local = False,
        limit: Limit = None,
        dry_run: DryRun = None,
        hourly_price: HourlyPrice = None,
        recipe: options.Recipe = DEFAULT_RECIPE,
        config: options.ConfigFiles = None,
        sets: options.Sets = None,
        print_config: options.PrintConfig = False,
        address: options.Address = None,
    ) -> None:
        how = _How(
            local=local,
            limit=limit,
            dry_run=dry_run,
            hourly_price=hourly_price,
            recipe=recipe,
            config=config,
            sets=sets,
            print_config=print_config,
            address=address,
        )
        _run(name, stages, input, output, how, {})

    return verb


def _source_verb(name: str, stages: Sequence[Stage]) -> Callable[..., None]:
    """A verb that reads a corpus."""

    def verb(
        input: Source,
        output: Output,
        metadata: Metadata = None,
        join: Join = None,
        caption_template: CaptionTemplate = None,
        local: Local = False,
        limit: Limit = None,
        dry_run: DryRun = None,
        hourly_price: HourlyPrice = None,
        recipe: options.Recipe = DEFAULT_RECIPE,
        config: options.ConfigFiles = None,
        sets: options.Sets = None,
        print_config: options.PrintConfig = False,
        address: options.Address = None,
    ) -> None:
        how = _How(
            local=local,
            limit=limit,
            dry_run=dry_run,
            hourly_price=hourly_price,
            recipe=recipe,
            config=config,
            sets=sets,
            print_config=print_config,
            address=address,
        )
        source = {"metadata": metadata, "join": join, "caption_template": caption_template}
        _run(name, stages, input, output, how, source)

    return verb


_SOURCES = (
    "--input shards --output outputs/records",
    "--input photos --output outputs/records --metadata photos/list.csv --join folder=subject "
    '--caption-template "a photo of a {class}"',
    "--input s3://bucket/urls.parquet --output s3://bucket/records --dry-run 2 --hourly-price 0.35",
)
for _stage in CATALOGUE.values():
    _verb = f"realcustom preprocess {_stage.name}"
    if _stage is INGEST:
        _examples = [f"{_verb} {arguments}" for arguments in _SOURCES]
        _make = _source_verb
    else:
        _directory = f"{_stage.reads[0]}@0123456789ab"
        _examples = [f"{_verb} --input outputs/records/{_directory} --output outputs/records"]
        _make = _stage_verb
    preprocess.command(name=_stage.name, help=_stage.help, epilog=options.example(*_examples))(
        _make(_stage.name, (_stage,))
    )
preprocess.command(
    name="filter",
    help="score, then select on what it wrote.",
    epilog=options.example(
        "realcustom preprocess filter --input outputs/records/ingest@0123456789ab --output outputs/records"
    ),
)(_stage_verb("filter", (SCORE, SELECT)))
preprocess.command(
    name="all",
    help="All six stages in order, from a source to training records.",
    epilog=options.example(*(f"realcustom preprocess all {arguments}" for arguments in _SOURCES)),
)(_source_verb("all", CHAIN))
