"""Train the adapter that ships with the synthetic world.

    python -m realcustom.pipeline.quickstart.zoo_adapter [--pictures 6000] [--steps N]

A synthetic corpus is processed by the six stages and `train`, all in this process, as by the verbs of the command line;
the result is copied to `sprites/zoo/adapter.safetensors`. Run again, it continues where it stopped. `--reference crop`
trains `adapter_crop.safetensors` for comparison, whose reference is the subject cut out on white.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path

from realcustom import log
from realcustom.pipeline.recipes import RunSettings, sprites
from realcustom.preprocessing.catalogue import CHAIN
from realcustom.settings import Reference
from realcustom.store import Store

logger = logging.getLogger(__name__)

FIRST_SCENE = 10**6  # first scene, so that it shares none with the quickstart's corpus, which is used for validation
PICTURES = 6000
VIEWS = 3  # pictures of one subject
NAMES = {Reference.IMAGE: "adapter", Reference.CROP: "adapter_crop"}


def settings_of(steps: int | None = None, reference: Reference = Reference.IMAGE) -> RunSettings:
    """The sprites recipe with a longer training, from new weights, with the learning rate for that."""
    run = sprites()
    image_encoder = dataclasses.replace(run.method.image_encoder, reference=reference)
    method = dataclasses.replace(run.method, image_encoder=image_encoder)
    train = dataclasses.replace(
        run.train,
        lr=3e-3,
        steps=steps or 8000,
        warmup=200,
        ema_decay=0.999,
        val_every=500,
        checkpoint_every=500,
        sample_every=4000,
        log_every=50,
        num_workers=1,
    )
    return dataclasses.replace(run, train=train, method=method)


def train_zoo_adapter(
    output: Path, work: Path, pictures: int, steps: int | None, reference: Reference = Reference.IMAGE
) -> None:
    """Draw, preprocess, train, and copy the adapter to `output`. Intermediate results are below `work`."""
    from realcustom.pipeline.stages import run_stages
    from realcustom.sprites.corpus import CorpusSettings, write_corpus
    from realcustom.training.run import train

    settings = settings_of(steps, reference)
    corpus = work / "corpus"
    if not (corpus / "truth.parquet").exists():
        write_corpus(
            corpus, CorpusSettings(pictures=pictures, per_shard=240, views=VIEWS, first=FIRST_SCENE, corrupted=0)
        )
    records = str(corpus / "shards")
    for line in run_stages(CHAIN, records, str(work / "stages"), settings, local=True):
        logger.info("%s", line)
        records = line  # the last one is the directory of the last stage
    result = train(
        records=records,
        output=str(work / NAMES[reference]),
        base=settings.base,
        image_encoder=None,
        method=settings.method,
        settings=settings.train,
        local=True,
    )
    store = Store()
    store.write(output, store.read(result.adapter))
    print(f"validation loss {result.loss_before:.5f} -> {result.loss_after:.5f}; saved {output}")


def main() -> None:
    """The command line of this file."""
    from realcustom.sprites import ZOO

    parser = argparse.ArgumentParser(
        prog="python -m realcustom.pipeline.quickstart.zoo_adapter", description="Train the shipped adapter."
    )
    parser.add_argument("--pictures", type=int, default=PICTURES, help="of the corpus")
    parser.add_argument("--steps", type=int, help="of training (default: the recipe's own number)")
    parser.add_argument(
        "--reference", choices=[one.value for one in Reference], default="image", help="what it is shown"
    )
    parser.add_argument("--output", type=Path, help="where the adapter goes (default: the zoo)")
    parser.add_argument("--work", type=Path, default=Path("outputs/zoo/adapter"), help="corpus, stages, checkpoints")
    options = parser.parse_args()
    log.configure()
    reference = Reference(options.reference)
    output = options.output or ZOO / f"{NAMES[reference]}.safetensors"
    train_zoo_adapter(output, options.work, options.pictures, options.steps, reference)


if __name__ == "__main__":
    main()
