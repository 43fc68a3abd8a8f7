"""The command line `realcustom`. Nothing heavy is imported until a verb has found its arguments in order."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from realcustom.errors import UsageError
from realcustom.pipeline.cli import options
from realcustom.pipeline.cli.generate import EPILOG, generate
from realcustom.pipeline.cli.options import DEFAULT_RECIPE, example, settings_of
from realcustom.pipeline.cli.preprocess import preprocess
from realcustom.pipeline.cluster import connected
from realcustom.pipeline.inputs import base_and_adapter, image_encoder_for, require_base, require_path, require_records

DEBUG_VARIABLE = "REALCUSTOM_DEBUG"  # set: mistakes show their trace too
INTERRUPTED = 130  # exit status of a program that SIGINT ended
_ClickException: Any = typer.BadParameter.__mro__[
    2
]  # what the parser of arguments raises; typer does not export the name

app = typer.Typer(
    name="realcustom",
    help="Subject-driven text-to-image customisation: data, training, images, serving.",
    epilog="A first run: realcustom quickstart. Settings: recipe < --config FILE < --set a.b=c.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 a mistake of the user's (one line on stderr), 130 interrupted."""
    warnings.showwarning = _show_warning
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status. What is not a user's mistake keeps its trace."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # their warnings are about what we chose; workers inherit this
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        status = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except _ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a command without its verb: the help is the message
            print(error.format_message(), file=sys.stderr)
            return 2
        return _refuse(error.format_message(), error)
    except UsageError as error:
        return _refuse(str(error), error)
    if status == INTERRUPTED:  # typer turns an interrupt into this status, without a word
        print("interrupted", file=sys.stderr)
    return int(status or 0)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"warning: {message}", file=file or sys.stderr)


def _refuse(message: str, error: BaseException) -> int:
    if os.environ.get(DEBUG_VARIABLE):
        raise error
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


@app.command(
    epilog=example(
        "realcustom quickstart", "realcustom quickstart --from-scratch --set train.lr=3e-3 --output outputs/scratch"
    )
)
def quickstart(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Page, report and all that they rest on.")] = Path(
        "outputs/quickstart"
    ),
    pictures: Annotated[int, typer.Option(min=48, help="Of the corpus that is drawn.")] = 240,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train from new weights, not the shipped ones.")
    ] = False,
    recipe: options.Recipe = DEFAULT_RECIPE,
    config: options.ConfigFiles = None,
    sets: options.Sets = None,
    print_config: options.PrintConfig = False,
    address: options.Address = None,
) -> None:
    """The whole system at work on a drawn world: corpus, preprocessing, training, serving, measuring, a page."""
    used = ("base", "adapter", "method", "preprocess", "train", "serve", "evaluate")
    settings = settings_of(recipe, config, sets, print_config, "quickstart", used)
    require_base(settings.base)
    if not from_scratch:
        if settings.adapter is None:
            raise UsageError(
                f"recipe {recipe} has no adapter to start from: give --from-scratch, or --set adapter=FILE"
            )
        require_path(settings.adapter, "adapter", "adapter checkpoint")
    from realcustom.pipeline.quickstart.run import run as run_quickstart

    run_quickstart(output, settings, pictures=pictures, from_scratch=from_scratch, address=address)


@app.command(
    epilog=example(
        "realcustom train --input outputs/records/encode@0123456789ab --output outputs/train",
        "realcustom train --input s3://bucket/encode@0123456789ab --output s3://bucket/train --set train.lr=3e-5",
    )
)
def train(
    records: Annotated[str, typer.Option("--input", metavar="RECORDS", help="Training records: folder, path or URI.")],
    output: Annotated[str, typer.Option(metavar="DIR", help="Adapter, metrics, samples, checkpoints; path or URI.")],
    initial_adapter: Annotated[
        str | None, typer.Option(metavar="FILE", help="Adapter whose weights training starts from; else new ones.")
    ] = None,
    base: options.Base = None,
    image_encoder: Annotated[
        str | None, typer.Option(metavar="FOLDER|HUB_ID", help="Instead of the recipe's method.image_encoder.model.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="One worker in this process, without Ray.")] = False,
    recipe: options.Recipe = DEFAULT_RECIPE,
    config: options.ConfigFiles = None,
    sets: options.Sets = None,
    print_config: options.PrintConfig = False,
    address: options.Address = None,
) -> None:
    """Train adapter and scoring module on training records; a run that OUTPUT holds unfinished is continued."""
    settings = settings_of(recipe, config, sets, print_config, "train", ("base", "method", "train"))
    base = base or settings.base
    require_records(records)
    require_base(base)
    if initial_adapter is not None:
        require_path(initial_adapter, "--initial-adapter", "adapter checkpoint")
    with contextlib.nullcontext() if local else connected(address):
        from realcustom.training.run import train as run_training

        result = run_training(
            records=records,
            output=output,
            base=base,
            image_encoder=image_encoder,
            method=settings.method,
            settings=settings.train,
            initial_adapter=initial_adapter,
            local=local,
        )
    print(f"validation loss {result.loss_before:.4f} -> {result.loss_after:.4f}")
    print(f"adapter {result.adapter}")
    print(f"sha256 {result.sha256}")


app.command(epilog=EPILOG)(generate)


@app.command(epilog=example("realcustom serve", "realcustom serve --adapter adapter.safetensors --set serve.port=8080"))
def serve(
    base: options.Base = None,
    adapter: options.Adapter = None,
    image_encoder: options.ImageEncoder = None,
    recipe: options.Recipe = DEFAULT_RECIPE,
    config: options.ConfigFiles = None,
    sets: options.Sets = None,
    print_config: options.PrintConfig = False,
    address: options.Address = None,
) -> None:
    """Answer POST /v1/images/generations until Ctrl-C."""
    settings = settings_of(
        recipe, config, sets, print_config, "serve", ("base", "adapter", "serve", "method.image_encoder")
    )
    base, adapter = base_and_adapter(settings, base, adapter)
    require_base(base)
    if adapter is not None:
        require_path(adapter, "--adapter", "adapter checkpoint")
    from realcustom.pipeline.serving import serve_until_interrupted

    image_encoder = image_encoder_for(adapter, image_encoder, settings.method.image_encoder.model)
    serve_until_interrupted(settings.serve, base, adapter, image_encoder, address)


@app.command(
    epilog=example(
        "realcustom convert RealCustom_highres.pth --base stabilityai/stable-diffusion-xl-base-1.0 --output adapter.safetensors"
    )
)
def convert(
    weights: Annotated[Path, typer.Argument(metavar="FILE", help="The released RealCustom++ weights, a .pth file.")],
    base: Annotated[
        str, typer.Option("--base", metavar="FOLDER|HUB_ID", help="SDXL model in diffusers' format that they act on.")
    ],
    output: Annotated[str, typer.Option(metavar="FILE", help="Adapter checkpoint to write; path or URI.")],
    image_encoder: Annotated[
        str | None,
        typer.Option("--image-encoder", metavar="SIGLIP,DINOV2", help="Folders or hub ids, instead of the preset's."),
    ] = None,
) -> None:
    """Turn the released RealCustom++ weights into an adapter; every name and shape is checked, nothing in it is run."""
    require_base(base)
    from realcustom.checkpoint import save_adapter
    from realcustom.released import convert_released

    adapter = convert_released(weights, base, image_encoder)
    print(f"adapter {output}: {len(adapter.tensors)} tensors")
    print(f"sha256 {save_adapter(output, adapter)}")


@app.command(
    epilog=example(
        "realcustom inspect adapter.safetensors",
        "realcustom inspect outputs/records/select@0123456789ab --html outputs/select.html",
        "realcustom inspect zoo",
    )
)
def inspect(
    target: Annotated[str, typer.Argument(metavar="ADAPTER|STAGE_DIR|RECORDS|zoo", help="What to look into.")],
    images: Annotated[int, typer.Option(min=1, help="For zoo: drawings to measure on.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="For zoo: other seeds, other drawings.")] = 0,
    sheet: Annotated[
        str | None,
        typer.Option("--html", metavar="FILE", help="Of a stage or records: write rows as pictures; path or URI."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=500, help="With --html: rows to show, spread over all.")] = 48,
) -> None:
    """Say what an adapter, a stage's output or a table of records is; `zoo` measures the shipped models live."""
    if sheet is not None and (target == "zoo" or target.endswith(".safetensors")):
        raise UsageError(f"--html shows the rows of a stage's output or of records as pictures, and {target} has none")
    from realcustom.pipeline.inspection import describe

    for line in describe(target, images, seed):
        print(line, flush=True)
    if sheet is not None:
        from realcustom.pipeline.sheet import write_sheet

        print(write_sheet(target, sheet, rows))


app.add_typer(preprocess, name="preprocess")
