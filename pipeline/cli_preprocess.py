"""The verbs `realcustom preprocess STAGE`: each stage is a command of its own, and `filter` is two in a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from pipeline import options
from pipeline.inputs import require_path
from pipeline.options import DEFAULT_RECIPE, settings_of
from preprocessing.settings import Stage

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
    str, typer.Option("--input", metavar="DIR", help="webdataset shards, Parquet tables or a folder of pictures.")
]
Output = Annotated[
    str, typer.Option("--output", metavar="ROOT", help="Root of all stages; the directory made below it is printed.")
]
Local = Annotated[bool, typer.Option("--local", help="In this process, without Ray: for a few pictures.")]
Limit = Annotated[
    int | None, typer.Option("--limit", metavar="N", min=1, help="At most N units more, to see what all would take.")
]

HELP = {
    Stage.INGEST: "Read a source: each picture decoded, hashed and named; what is of no use put aside with its reason.",
    Stage.SCORE: "Score every picture: size, sharpness, hashes, and by the neural models that are set. No row leaves.",
    Stage.SELECT: "Keep or drop by thresholds over the scores, and drop duplicates. Cheap: run it again at will.",
    Stage.CAPTION: "Put a synthetic caption beside the alt text, and find the words that can name a subject.",
    Stage.SUBJECTS: "Find each target word in its picture: box, mask, checks, crop. Writes training records.",
    Stage.ENCODE: "Put latents, text features and image features of the training recipe beside each record.",
}
BEFORE = {
    Stage.SCORE: Stage.INGEST,
    Stage.SELECT: Stage.SCORE,
    Stage.CAPTION: Stage.SELECT,
    Stage.SUBJECTS: Stage.CAPTION,
    Stage.ENCODE: Stage.SUBJECTS,
}


def _make_verb(name: str, stages: Sequence[Stage], source: object) -> Callable[..., None]:
    def verb(
        input: str,
        output: Output,
        local: Local = False,
        limit: Limit = None,
        recipe: options.Recipe = DEFAULT_RECIPE,
        config: options.ConfigFiles = None,
        sets: options.Sets = None,
        print_config: options.PrintConfig = False,
        address: options.Address = None,
    ) -> None:
        used = [f"preprocess.{section}" for section in (*(stage.value for stage in stages), "compute", "execution")]
        if Stage.ENCODE in stages:
            used.append("method.image_encoder")
        settings = settings_of(recipe, config, sets, print_config, f"preprocess {name}", used)
        require_path(input, "--input", "folder or table")
        from pipeline.stages import run_stages

        for line in run_stages(stages, input, output, settings, local=local, limit=limit, address=address):
            print(line, flush=True)

    verb.__annotations__["input"] = source
    return verb


for _stage in Stage:
    _before = BEFORE.get(_stage)
    _input = f"outputs/records/{_before.value}@0123456789abcdef" if _before else "photos"
    preprocess.command(
        name=_stage.value,
        help=HELP[_stage],
        epilog=options.example(f"realcustom preprocess {_stage.value} --input {_input} --output outputs/records"),
    )(_make_verb(_stage.value, (_stage,), Source if _stage is Stage.INGEST else Input))
preprocess.command(
    name="filter",
    help="score, then select on what it wrote.",
    epilog=options.example(
        "realcustom preprocess filter --input outputs/records/ingest@0123456789abcdef --output outputs/records"
    ),
)(_make_verb("filter", (Stage.SCORE, Stage.SELECT), Input))
