"""The verbs `realcustom preprocess ...`: one for each stage of the catalogue; `filter` runs two stages, `all` six or seven."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from realcustom.config import merge
from realcustom.errors import UsageError
from realcustom.pipeline.cli.options import Address, EncoderOptions, SettingsOptions, add_verb, with_parameters
from realcustom.pipeline.inputs import find_stage, require_path
from realcustom.pipeline.recipes import RunSettings
from realcustom.preprocessing.catalogue import CAPTION, CATALOGUE, CHAIN, ENCODE, INGEST, SCORE, SELECT, VIEWS, chain
from realcustom.preprocessing.engine.stage import Stage

logger = logging.getLogger(__name__)

app = typer.Typer(
    help="From an image-text corpus to training records: ingest, score, select, caption, subjects, views, encode.",
    epilog="Each stage reads the directory that the one before printed; run again, it does only the rest.",
    rich_markup_mode=None,
)

Input = Annotated[str, typer.Option(metavar="DIR", help="Directory of the stage before, the root of all, or a table.")]
Source = Annotated[
    str,
    typer.Option(metavar="DIR", help="webdataset shards, Parquet tables, a folder of pictures, or a table of URLs."),
]
Output = Annotated[
    str, typer.Option(metavar="ROOT", help="Root of all stages; the directory made below it is printed.")
]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How a source is read: options for settings of `ingest`."""

    metadata: Annotated[str | None, typer.Option(metavar="TABLE", help="Table that describes a folder's pictures.")] = (
        None
    )
    join: Annotated[
        str | None,
        typer.Option(metavar="PART=COLUMN", help="Matches rows to pictures; PART: folder, stem, file or path."),
    ] = None
    caption_template: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help='As "a photo of a {class}": columns of the table, or a PART.'),
    ] = None

    def settings(self) -> Mapping[str, Any]:
        """The settings given by the options, nested."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return {"preprocess": {"ingest": given}} if given else {}


@dataclass(frozen=True, kw_only=True)
class WordOptions:
    """What the pictures show: options for settings of `caption`."""

    word: Annotated[
        str | None,
        typer.Option(metavar="WORD", help="Subject of every picture, instead of a word of each caption."),
    ] = None

    def settings(self) -> Mapping[str, Any]:
        """The settings given by the options, nested."""
        return {"preprocess": {"caption": {"word": self.word}}} if self.word is not None else {}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a verb runs."""

    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray: for a few pictures.")] = False
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Do at most N more units.")] = None
    dry_run: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Try N units, write nothing, estimate the time of all.")
    ] = None
    hourly_price: Annotated[
        float | None, typer.Option(metavar="PRICE", min=0.0, help="With --dry-run: of one worker.")
    ] = None
    address: Address = None

    def run(self, stages: Sequence[Stage], input: str, output: str, settings: RunSettings) -> Iterator[str]:
        """Run the stages, or try them; yields lines about the results."""
        if self.dry_run is not None:
            if self.limit is not None:
                raise UsageError("--dry-run tries units and keeps nothing, --limit keeps them: give one of the two")
            from realcustom.pipeline.dry_run import dry_run

            return dry_run(stages, input, settings, units=self.dry_run, hourly_price=self.hourly_price)
        if self.hourly_price is not None:
            logger.warning("--hourly-price has no effect without --dry-run")
        from realcustom.pipeline.stages import run_stages

        return run_stages(stages, input, output, settings, local=self.local, limit=self.limit, address=self.address)


# Options of a verb for settings of the stages that it runs.
OPTIONS: Mapping[str, type[SourceOptions | WordOptions | EncoderOptions]] = {
    INGEST.name: SourceOptions,
    CAPTION.name: WordOptions,
    ENCODE.name: EncoderOptions,
}


def _verb(name: str, stages: Sequence[Stage]) -> Callable[..., None]:
    """A verb that runs `stages`, of the whole chain those that the settings ask for; how it reads its input depends on the
    first."""
    used = [f"preprocess.{section}" for section in (*(stage.name for stage in stages), "compute", "execution")]
    if stages is CHAIN:
        used += [f"preprocess.{VIEWS.name}"]
    if ENCODE in stages:
        used += ["base", "method.image_encoder", "method.base.sdxl_pooled"]
    groups = {stage.name: OPTIONS[stage.name] for stage in stages if stage.name in OPTIONS}

    def run(input: str, output: str, how: RunOptions, given: SettingsOptions, **options: Any) -> None:
        over: Mapping[str, Any] = {}
        for group in options.values():
            over = merge(over, group.settings())
        settings = given.resolve(f"preprocess {name}", used, over)
        if stages[0].open_source is None:
            input = find_stage(input, stages[0].reads)
        else:
            require_path(input, "--input", "folder or table")
        asked = chain(settings.preprocess) if stages is CHAIN else stages
        for line in how.run(asked, input, output, settings):
            print(line, flush=True)

    source = Input if stages[0].open_source is None else Source
    return with_parameters(
        run, {"input": source, "output": Output, **groups, "how": RunOptions, "given": SettingsOptions}
    )


def _add(name: str, stages: Sequence[Stage], help: str) -> None:
    verb = f"realcustom preprocess {name}"
    if stages[0].open_source is None:
        before = f"{stages[0].reads[0]}@0123456789ab"
        examples: Sequence[str] = [f"{verb} --input outputs/records/{before} --output outputs/records"]
    else:
        examples = [
            f"{verb} --input shards --output outputs/records",
            f"{verb} --input photos --output outputs/records --metadata photos/list.csv --join folder=subject "
            '--caption-template "a photo of a {class}"',
            f"{verb} --input s3://bucket/urls.parquet --output s3://bucket/records --dry-run 2 --hourly-price 0.35",
        ]
    add_verb(app, _verb(name, stages), *examples, name=name, help=help)


@app.callback(invoke_without_command=True)
def _before_the_verb(context: typer.Context) -> None:
    if context.invoked_subcommand is None:  # the help is the message
        sys.stderr.write(context.get_help() + "\n")
        raise typer.Exit(2)


for _stage in CATALOGUE.values():
    _add(_stage.name, (_stage,), _stage.help)
_add("filter", (SCORE, SELECT), "score, then select on what it wrote.")
_add("all", CHAIN, "All stages in order, from a source to training records; views only with views.encoder.")
