"""Throughput of the stages that run models, by batch size, and what 10 million and a billion pictures would cost.

    python benchmarks/neural_stages.py                  # a few minutes on a core
    python benchmarks/neural_stages.py --only batches   # the synthetic world's models on this machine
    python benchmarks/neural_stages.py --only costs     # FLOPs of the paper recipe's models, counted

`batches`: each stage, as a worker runs it, on drawn pictures with the zoo's models on one thread; a unit of the same rows
comes first, as warm-up. Reading, writing and start-up are not in it. `costs`: the models that the recipe `paper_sd15`
names, in their real sizes with random weights: the FLOPs of matrix products, convolutions and attention of one forward
are counted, on torch's meta device where nothing is computed (the detector's on the CPU). A GPU is assumed, none is
measured: see ASSUMED. Writes benchmarks/results/preprocessing.json and prints both tables as Markdown.

    preprocess_STAGE_ms_batch_N     CPU milliseconds a row
    preprocess_gflops_STAGE         of one picture, by model in `detail`
    preprocess_gpu_hours_COUNT      of all stages for so many pictures, under ASSUMED
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import record
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    SamConfig,
    SamModel,
    SwinConfig,
)

from realcustom.pipeline.recipes import sprites
from realcustom.pipeline.stages import run_stages
from realcustom.preprocessing.catalogue import CAPTION, CHAIN, ENCODE, SCORE, SUBJECTS
from realcustom.preprocessing.engine.fingerprint import identities_of
from realcustom.preprocessing.engine.stage import Stage
from realcustom.preprocessing.engine.unit import Unit, UnitKind
from realcustom.preprocessing.engine.worker import StageJob, TableStage, TableWork, load_work
from realcustom.preprocessing.run import check_stage
from realcustom.sprites.corpus import CorpusSettings, write_corpus

RESULTS = record.RESULTS / "preprocessing.json"
NEURAL = (SCORE, CAPTION, SUBJECTS, ENCODE)
BATCHES = (1, 4, 16, 64)
PICTURES, ROUNDS = 128, 3
UNIT = Unit(name="timed", identity="", kind=UnitKind.PART, files=())
COUNTS = {"10m": 10_000_000, "1b": 1_000_000_000}
# An H100 SXM does 989 dense bf16 TFLOP/s (NVIDIA's data sheet); 0.3 of it is what inference of such models at moderate
# batches may reach, a guess to be replaced by a measurement.
ASSUMED = {"peak TFLOP/s": 989.0, "utilisation": 0.3}
NEW_TOKENS = 20  # of a caption; decoding one by one with a cache costs what one pass over all of them does
SIDE = 512  # of the latents


def main() -> None:
    """Measure, count, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("batches", "costs"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.only != "costs":
        batches()
    if arguments.only != "batches":
        costs()


def write(metric: str, values: list[float], unit: str, detail: dict[str, float] | None = None) -> None:
    """A record of the median."""
    item = record.record(
        metric,
        statistics.median(values),
        unit,
        n=len(values),
        spread=(min(values), max(values)),
        command="python benchmarks/neural_stages.py",
        commit=record.head(),
    )
    record.write(RESULTS, [item if detail is None else {**item, "detail": detail}])


def batches() -> None:
    """CPU milliseconds a row of each stage at each batch size."""
    print("| stage | " + " | ".join(f"batch {size}" for size in BATCHES) + " |\n" + "|---" * (len(BATCHES) + 1) + "|")
    with tempfile.TemporaryDirectory(prefix="realcustom-neural-") as folder:
        for stage, table in inputs(Path(folder)):
            cells = []
            for size in BATCHES:
                work = load_work(job_of(stage, size))
                assert isinstance(work, TableWork)
                run = work.stage
                run(UNIT, table)  # warms up
                values = [milliseconds(run, table) for _ in range(ROUNDS)]
                write(f"preprocess_{stage.name}_ms_batch_{size}", values, "ms CPU")
                cells.append(statistics.median(values))
            print(f"| {stage.name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |", flush=True)


def inputs(folder: Path) -> Iterator[tuple[Stage, pa.Table]]:
    """Each neural stage with the table that the stages before it made of drawn pictures."""
    write_corpus(folder / "corpus", CorpusSettings(pictures=PICTURES, per_shard=PICTURES, corrupted=0))
    source = str(folder / "corpus" / "shards")
    for stage in CHAIN:
        if stage in NEURAL:
            yield stage, pa.concat_tables(pq.read_table(file) for file in sorted(Path(source).glob("*.parquet")))
        *_, source = run_stages([stage], source, str(folder / "stages"), sprites(), local=True)


def job_of(stage: Stage, batch_size: int) -> StageJob:
    """The job of a worker of the sprites recipe, with another batch size."""
    run = sprites()
    preprocess = run.for_stages()
    section = dataclasses.replace(getattr(preprocess, stage.name), batch_size=batch_size)
    settings = check_stage(stage, dataclasses.replace(preprocess, **{stage.name: section}), run.method)
    return stage.job(settings, "", identities_of(stage, settings), run.method)


def milliseconds(run: TableStage, table: pa.Table) -> float:
    """CPU time of this process per row."""
    start = time.process_time()
    run(UNIT, table)
    return (time.process_time() - start) / len(table) * 1000


def costs() -> None:
    """FLOPs of a picture by stage, and GPU hours of a corpus if every picture went through every stage."""
    total = 0.0
    print("| stage | GFLOP a picture | of which |\n|---|---|---|")
    for stage, models in flops().items():
        gflops = {name: value / 1e9 for name, value in models.items()}
        of_stage = sum(gflops.values())
        total += of_stage
        write(f"preprocess_gflops_{stage.name}", [of_stage], "GFLOP", gflops)
        parts = ", ".join(f"{name} {value:,.0f}" for name, value in gflops.items())
        print(f"| {stage.name} | {of_stage:,.0f} | {parts} |")
    for name, count in COUNTS.items():
        hours = count * total * 1e9 / (ASSUMED["peak TFLOP/s"] * 1e12 * ASSUMED["utilisation"]) / 3600
        write(f"preprocess_gpu_hours_{name}", [hours], "GPU hours", ASSUMED)
        print(f"{count:,} pictures: {hours:,.0f} GPU hours", file=sys.stderr)


def flops() -> dict[Stage, dict[str, float]]:
    """Of one picture with one target word and one accepted box: stage -> model -> FLOPs."""
    large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    words = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision = {**large, "patch_size": 14, "image_size": 224}
    tokens = torch.zeros(1, 77, dtype=torch.long, device="meta")
    sam_vision = {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "global_attn_indexes": [7, 15, 23, 31],
        "output_channels": 256,
    }
    swin = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12}
    swin |= {"image_size": 384, "out_indices": [2, 3, 4]}
    with torch.device("meta"):
        clip = CLIPModel(CLIPConfig(text_config=words, vision_config=vision, projection_dim=768))
        blip = BlipForConditionalGeneration(BlipConfig(vision_config={**large, "patch_size": 16, "image_size": 384}))
        sam = SamModel(SamConfig(vision_config=sam_vision))
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        )
        text = CLIPTextModel(CLIPTextConfig(**words))
        image_encoder = CLIPVisionModel(CLIPVisionConfig(**vision))
        picture = {side: torch.zeros(1, 3, side, side) for side in (224, 384, SIDE, 1024)}
        seen, box = torch.zeros(1, 577, 1024), torch.zeros(1, 1, 4)
    blip_vision = blip.vision_model
    # makes tensors of its own while it runs, and so cannot run on the meta device
    detector = GroundingDinoForObjectDetection(GroundingDinoConfig(backbone_config=SwinConfig(**swin)))
    # as the stage makes it of a 4:3 picture
    wide, query = torch.zeros(1, 3, 800, 1067), torch.zeros(1, 16, dtype=torch.long)
    return {
        SCORE: {"CLIP ViT-L/14": counted(clip, lambda: clip(input_ids=tokens, pixel_values=picture[224]))},
        CAPTION: {
            "BLIP-large, picture": counted(blip_vision, lambda: blip_vision(picture[384])),
            f"BLIP-large, {NEW_TOKENS} tokens": counted(
                blip, lambda: blip.text_decoder(tokens[:, :NEW_TOKENS], encoder_hidden_states=seen)
            ),
        },
        SUBJECTS: {
            "Grounding DINO base": counted(detector, lambda: detector(wide, query)),
            "SAM ViT-H": counted(sam, lambda: sam(pixel_values=picture[1024], input_boxes=box)),
        },
        ENCODE: {
            "autoencoder": counted(vae, lambda: vae.encode(picture[SIDE])),
            "CLIP-L text": counted(text, lambda: text(tokens)),
            "CLIP-L image": counted(image_encoder, lambda: image_encoder(picture[224])),
        },
    }


def counted(model: nn.Module, call: Callable[[], object]) -> float:
    """FLOPs of a call, two for each multiply-add."""
    model.requires_grad_(False).eval()  # not no_grad: the counter does not work with it
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


if __name__ == "__main__":
    main()
