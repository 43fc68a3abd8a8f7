"""Whole runs on tiny real models: resume, workers, caches, guards, errors."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from realcustom.checkpoint import load_adapter
from realcustom.errors import UsageError
from realcustom.identity import model_identity
from realcustom.model import PROJECTOR
from realcustom.settings import Fusion, ImageEncoderSettings, Projector, Reference
from realcustom.store import Store
from realcustom.training import run
from realcustom.training.batch import Batch
from realcustom.training.batches import BatchMaker
from realcustom.training.checkpoints import list_checkpoints, load_checkpoint
from realcustom.training.data import Share
from realcustom.training.draws import training_influence_quantity
from realcustom.training.failures import TrainingDiverged
from realcustom.training.features import Kind
from realcustom.training.loop import Trainer
from realcustom.training.run import TrainResult, train
from realcustom.training.settings import CurriculumPoint, Precision, Schedule, TrainSettings
from realcustom.training.worker import Worker
from realcustom.training.world import World
from tests.support.tiny import tiny_pp_settings, tiny_sdxl_base, tiny_siglip_dino
from tests.support.training_corpus import to_cell, write_pictures
from tests.support.training_runs import METHOD, SETTINGS, curve, fit, fit_killed, tensors


def test_loss_falls_and_output_is_complete(undisturbed: TrainResult, world: SimpleNamespace) -> None:
    assert undisturbed.loss_after < undisturbed.loss_before
    assert [step for step, _, val in curve(undisturbed) if val is not None] == [0, 6, 12]
    assert [step for step, loss, _ in curve(undisturbed) if loss is not None] == [4, 8, 12]
    assert (
        undisturbed.curve[4]["grad_norm"] > 0
    )  # step 12; before it the epochs' last batch is one row without a reference
    output = Path(undisturbed.adapter).parent
    assert {path.name for path in (output / "checkpoints").iterdir()} == {
        "step-00000010.safetensors",
        "step-00000012.safetensors",
    }
    adapter = load_adapter(undisturbed.adapter)
    named = replace(METHOD.image_encoder, model=adapter.image_encoder)
    assert adapter.settings == replace(METHOD, image_encoder=named) and adapter.provenance["train"]["steps"] == 12
    weights = load_checkpoint(str(output / "checkpoints" / "step-00000012.safetensors"), Store()).tensors
    name = next(iter(adapter.tensors))
    assert torch.equal(adapter.tensors[name], weights[f"ema.{name}"])
    assert not torch.equal(adapter.tensors[name], weights[f"weights.{name}"])


def test_zero_turns_off_what_comes_every_so_many_steps(world: SimpleNamespace, tmp_path: Path) -> None:
    """What comes before the first step and after the last one stays."""
    settings = replace(SETTINGS, steps=4, val_every=0, log_every=0, checkpoint_every=0, sample_every=0)
    result = fit(world, tmp_path / "run", settings)
    steps = [(step, loss is not None, val_loss is not None) for step, loss, val_loss in curve(result)]
    assert steps == [(0, False, True), (4, True, False), (4, False, True)]
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize("step", [3, 11])  # before the first checkpoint, and after the second
def test_resumed_run_is_bitwise_the_undisturbed_one(
    undisturbed: TrainResult, world: SimpleNamespace, tmp_path: Path, step: int
) -> None:
    fit_killed(step, world, tmp_path)
    assert not (tmp_path / "adapter.safetensors").exists()
    resumed = fit(world, tmp_path)
    assert resumed.sha256 == undisturbed.sha256 and curve(resumed) == curve(undisturbed)


def test_finished_run_returns_at_once_and_another_configuration_is_refused(
    undisturbed: TrainResult, world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Path(undisturbed.adapter).parent
    with monkeypatch.context() as patch:
        patch.setattr(run, "_run_local", lambda job: pytest.fail("trained again"))
        assert fit(world, output) == undisturbed
        assert fit(world, output, replace(SETTINGS, checkpoint_every=3, keep_checkpoints=9)) == undisturbed
        quieter = replace(SETTINGS, log_every=1, val_every=3, sample_every=5, max_skipped_steps=1)
        assert fit(world, output, quieter) == undisturbed
    with pytest.raises(ValueError, match=r"12 steps, train\.steps=11 are fewer"):
        fit(world, output, replace(SETTINGS, steps=11))
    with pytest.raises(ValueError, match=r"train\.lr was 0\.01 there and is 0\.02 now"):
        fit(world, output, replace(SETTINGS, lr=2e-2))
    with pytest.raises(ValueError, match=r"method\.tokens\.fusion was 'timestep'"):
        fit(world, output, method=replace(METHOD, tokens=replace(METHOD.tokens, fusion=Fusion.MEAN)))
    with pytest.raises(ValueError, match="records was"):
        fit(world, output, records=world.pictures)


def test_a_finished_run_is_trained_further(undisturbed: TrainResult, world: SimpleNamespace, tmp_path: Path) -> None:
    """Killed on the way, and with other lines in its log, it ends where a run of all steps ends."""
    longer = replace(SETTINGS, steps=17)
    whole = fit(world, tmp_path / "whole", longer)
    shutil.copytree(Path(undisturbed.adapter).parent, tmp_path / "run")
    fit_killed(16, world, tmp_path / "run", replace(longer, log_every=1, val_every=2))
    assert fit(world, tmp_path / "run").sha256 == undisturbed.sha256  # still there
    further = fit(world, tmp_path / "run", replace(longer, log_every=2))
    assert further.sha256 == whole.sha256 and further.loss_before == whole.loss_before
    assert [row["step"] for row in further.curve if "val_loss" in row] == [0, 6, 12, 14, 17]
    with pytest.raises(UsageError, match=r"has done 17 steps, train\.steps=12 are fewer"):
        fit(world, tmp_path / "run")


def test_a_schedule_that_ends_is_not_trained_further(world: SimpleNamespace, tmp_path: Path) -> None:
    cosine = replace(SETTINGS, steps=2, schedule=Schedule.COSINE)
    fit(world, tmp_path, cosine)
    with pytest.raises(UsageError, match=r"train\.steps was 2 there and is 3 now; .* only a run with .*constant"):
        fit(world, tmp_path, replace(cosine, steps=3))


def test_features_computed_on_the_fly_equal_cached_ones(
    undisturbed: TrainResult, world: SimpleNamespace, tmp_path: Path
) -> None:
    computed = fit(world, tmp_path, replace(SETTINGS, memory_gib=0), records=world.pictures)  # computed at each use
    assert all(torch.equal(value, tensors(undisturbed)[name]) for name, value in tensors(computed).items())


def test_accumulated_gradients_equal_the_batch_s(
    undisturbed: TrainResult, world: SimpleNamespace, tmp_path: Path
) -> None:
    accumulated = fit(world, tmp_path, replace(SETTINGS, gradient_accumulation=3))
    assert accumulated.loss_after == pytest.approx(undisturbed.loss_after, rel=1e-4)
    assert any(not torch.equal(value, tensors(undisturbed)[name]) for name, value in tensors(accumulated).items())


def test_initial_adapter_is_the_start(undisturbed: TrainResult, world: SimpleNamespace, tmp_path: Path) -> None:
    continued = fit(world, tmp_path, replace(SETTINGS, steps=1), initial_adapter=undisturbed.adapter)
    assert continued.loss_before == undisturbed.loss_after
    other = replace(METHOD, tokens=replace(METHOD.tokens, hidden=8))
    said = rf"{undisturbed.adapter} was trained with method\.tokens\.hidden {METHOD.tokens.hidden}, this run has 8; set it as"
    with pytest.raises(UsageError, match=said):
        fit(world, tmp_path / "other", method=other, initial_adapter=undisturbed.adapter)
    models = (tiny_sdxl_base(tmp_path / "sdxl"), world.image_encoder, METHOD, replace(SETTINGS, steps=1))
    said = rf"{undisturbed.adapter}: the adapter does not fit .*missing: .*; give the base \S+ and the image encoder \S+ that it"
    with pytest.raises(UsageError, match=said):
        train(world.pictures, str(tmp_path / "other"), *models, undisturbed.adapter, local=True)
    assert not (tmp_path / "other").exists()


def test_bf16_and_a_fusion_that_leaves_parameters_out(world: SimpleNamespace, tmp_path: Path) -> None:
    method = replace(METHOD, tokens=replace(METHOD.tokens, fusion=Fusion.TEXT))
    result = fit(world, tmp_path, replace(SETTINGS, steps=6, precision=Precision.BF16), method=method)
    assert result.loss_after < result.loss_before
    assert any(name.startswith("adaptive_scoring.latent_") for name in tensors(result))


@pytest.mark.parametrize("projector", [Projector.HIGHRES, Projector.SHALLOW_V1_COMPAT])
def test_a_projector_is_trained_with_the_rest(world: SimpleNamespace, tmp_path: Path, projector: Projector) -> None:
    """Of the branch that `shallow_v1_compat` leaves dead, the start is kept."""
    models = tiny_siglip_dino(tmp_path / "siglip_dino")
    pp = SimpleNamespace(base=world.base, image_encoder=models)
    settings = replace(SETTINGS, steps=6, p_drop_image=0.0)
    result = fit(pp, tmp_path / "run", settings, records=world.pictures, method=tiny_pp_settings(projector))
    assert result.loss_after < result.loss_before
    adapter = load_adapter(result.adapter)
    assert adapter.image_encoder == model_identity(models)
    start = fit(
        pp, tmp_path / "start", replace(settings, steps=1, lr=1e-12), world.pictures, tiny_pp_settings(projector)
    )
    still = {name for name, value in tensors(result).items() if torch.allclose(value, tensors(start)[name], atol=1e-9)}
    dead = ("min_attention.", "projector.") if projector is Projector.SHALLOW_V1_COMPAT else ()
    branch = tuple(f"{PROJECTOR}.{name}" for name in dead)
    assert still == {name for name in adapter.tensors if name.startswith(branch)}


def make_worker(world: SimpleNamespace, tmp_path: Path, settings: TrainSettings, **arguments: str) -> Worker:
    method = METHOD
    records = arguments.get("records", world.caches)
    job = run.make_job(records, str(tmp_path), world.base, world.image_encoder, method, settings)
    return Worker(job, World())


def test_references_are_other_views_and_dropout_is_per_sample(world: SimpleNamespace, tmp_path: Path) -> None:
    worker = make_worker(world, tmp_path, replace(SETTINGS, p_multiview=0.5, p_drop_text=0.5, p_drop_image=0.5))
    get, views = worker.features.get, worker.batches.views
    seen = {"own": 0, "view": 0, "none": 0, "no text": 0}
    for step in range(12):
        share = worker.order.share(step, 0, 1)
        batch = worker.batches.training(share)
        for row, number in enumerate(map(int, share.numbers)):
            image = batch.image_embeds[row]
            allowed = [get(Kind.IMAGE, view) for view in views.of(number)]
            assert allowed and number not in views.of(number)
            seen["own"] += torch.equal(image, get(Kind.IMAGE, number))
            seen["view"] += any(torch.equal(image, view) for view in allowed)
            seen["none"] += not image.any()
            seen["no text"] += torch.equal(batch.encoder_hidden_states[row], worker.encoders.text_features(""))
    assert seen["own"] + seen["view"] + seen["none"] == 60 and min(seen.values()) > 5


def test_other_views_that_are_not_there_are_said_once(
    world: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pictures(tmp_path / "alone", 4)
    said = "p_multiview has no effect: no record names another view"
    point = CurriculumPoint(until_step=5, p_multiview=0.5)
    for settings in (replace(SETTINGS, p_multiview=0.5), replace(SETTINGS, curriculum=(point,))):
        make_worker(world, tmp_path, settings)  # its records have views
        assert said not in caplog.text
        make_worker(world, tmp_path, settings, records=str(tmp_path / "alone"))
        assert caplog.text.count(said) == 1
        caplog.clear()


def test_workers_share_the_held_out_records_and_none_reads_another_one_s(
    world: SimpleNamespace, tmp_path: Path
) -> None:
    worker = make_worker(world, tmp_path, SETTINGS)

    def validated(rank: int, size: int) -> tuple[dict[int, list[int]], torch.Tensor]:
        """The strata of each record, and the sums of errors and of weights by stratum."""
        worker.batches.world = World(rank=rank, size=size)
        strata, sums = dict[int, list[int]](), torch.zeros(2, SETTINGS.validation_timesteps, dtype=torch.float64)
        for batch, stratum in worker.batches.validation(worker.validation):
            with torch.no_grad():
                errors = worker.trainer.errors(worker.model, batch, 1.0).double()
            sums.index_add_(1, stratum, torch.stack([errors, torch.ones_like(errors)]) * batch.weights)
            for number, one, weight in zip(batch.numbers, stratum.tolist(), batch.weights, strict=True):
                if weight:
                    strata.setdefault(number, []).append(one)
        return strata, sums

    whole, sums = validated(0, 1)
    parts = [validated(rank, 3) for rank in range(3)]
    assert [number for strata, _ in parts for number in strata] == worker.validation.tolist()  # each on one of them
    assert {number: found for strata, _ in parts for number, found in strata.items()} == whole
    assert all(found == [0, 1] for found in whole.values())
    assert torch.allclose(sum(part for _, part in parts), sums, rtol=1e-6)  # type: ignore[arg-type]


def test_timesteps_are_uniform_or_shifted_to_the_noisy_end(world: SimpleNamespace, tmp_path: Path) -> None:
    drawn = {}
    for shift in (1.0, 10.0):
        worker = make_worker(world, tmp_path / str(shift), replace(SETTINGS, timestep_shift=shift))
        batches = [worker.batches.training(worker.order.share(step, 0, 1)) for step in range(60)]
        timesteps = torch.cat([batch.timesteps[batch.weights > 0] for batch in batches])
        drawn[shift] = timesteps.double() / worker.batches.num_train_timesteps
    assert drawn[1.0].max() < 1 and drawn[10.0].max() < 1
    assert abs(drawn[1.0].mean() - 0.5) < 0.05
    expected = 10 * drawn[1.0] / (1 + 9 * drawn[1.0])  # of the same draws
    assert (drawn[10.0] - expected).abs().max() < 0.011  # timesteps are whole numbers, ten times as far apart at 0


def test_one_step_equals_two_workers_gradients_in_sum(world: SimpleNamespace, tmp_path: Path) -> None:
    """The shares of two workers, weighted as they are, make up the batch of one: the law behind DDP's average."""
    worker = make_worker(world, tmp_path, SETTINGS)
    last = worker.order.steps_per_epoch - 1  # the padded batch
    whole = worker.batches.training(worker.order.share(last, 0, 1))

    def loss(batch: Batch) -> float:
        with torch.no_grad():
            errors = worker.trainer.errors(worker.model, batch, 0.8)
        return float((errors * batch.weights).sum() / batch.total_weight)

    parts = sum(loss(worker.batches.training(worker.order.share(last, rank, 2))) for rank in range(2))
    assert whole.weights.sum() < len(whole.weights)
    assert parts == pytest.approx(loss(whole), rel=1e-5)


def test_non_finite_steps_are_skipped_then_stop_the_run(world: SimpleNamespace, tmp_path: Path) -> None:
    worker = make_worker(world, tmp_path, replace(SETTINGS, max_skipped_steps=2))
    good = worker.batches.training(worker.order.share(0, 0, 1))
    bad = replace(good, latents=torch.full_like(good.latents, torch.nan))
    before = {name: value.clone() for name, value in worker.model.state_dict().items()}
    assert worker.trainer.step(bad).skipped
    assert all(torch.equal(value, before[name]) for name, value in worker.model.state_dict().items())
    assert not worker.trainer.step(good).skipped
    trained = worker.trainer.parameters.keys()
    changed = {name for name, value in worker.model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.removeprefix("unet.") for name in changed} == trained  # inv. 22: and nothing that is frozen
    worker.trainer.step(bad)
    with pytest.raises(TrainingDiverged, match="2 steps in a row"):
        worker.trainer.step(bad)


def test_a_validation_loss_that_is_not_finite_ends_the_run(world: SimpleNamespace, tmp_path: Path) -> None:
    """Its weights have overflowed: nothing is said to have ended well, and the checkpoint before it is there."""
    after_step = Worker._after_step

    def overflowing(worker: Worker, *arguments: object) -> None:
        if worker.trainer.step_count == 6:
            next(iter(worker.trainer.ema.values())).fill_(torch.inf)
        after_step(worker, *arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "_after_step", overflowing)
        with pytest.raises(TrainingDiverged, match="validation loss after step 6 is not finite"):
            fit(world, tmp_path)
    assert (
        not (tmp_path / "result.json").exists() and len(list_checkpoints(str(tmp_path / "checkpoints"), Store())) == 1
    )


def test_a_full_gpu_names_the_settings_that_help(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "launch", full)
    with pytest.raises(UsageError, match=r"set train\.micro_batch=auto, train\.gradient_checkpointing=true, or"):
        fit(world, tmp_path)


def test_a_skipped_step_lists_its_records(
    world: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = BatchMaker.training

    def poisoned(maker: BatchMaker, share: Share) -> Batch:
        batch = training(maker, share)
        return (
            replace(batch, latents=batch.latents * torch.nan) if share.epoch == 0 and share.total_weight < 5 else batch
        )

    monkeypatch.setattr(BatchMaker, "training", poisoned)
    fit(world, tmp_path, replace(SETTINGS, steps=5))
    (said,) = [line for line in caplog.messages if "was skipped" in line]
    index = make_worker(world, tmp_path / "other", SETTINGS).features.index
    assert said.startswith("step 4 was skipped") and any(index.uid(number) in said for number in range(len(index)))


def test_min_snr_weighs_the_training_loss_alone(world: SimpleNamespace, tmp_path: Path) -> None:
    workers = [make_worker(world, tmp_path, replace(SETTINGS, min_snr_gamma=gamma)) for gamma in (0.0, 0.1)]
    batch = workers[0].batches.training(workers[0].order.share(0, 0, 1))
    trainer = workers[1].trainer
    with torch.no_grad():
        errors = trainer.errors(trainer.model, batch, training_influence_quantity((0.3, 1.0), SETTINGS.seed, 0))
    weights = trainer.objective.min_snr_weights(batch.timesteps, 0.1)
    assert len(set(weights.tolist())) > 1
    assert trainer.step(batch).loss == pytest.approx(float((errors * weights).sum() / 5), rel=1e-5)
    assert workers[0].trainer.step(batch).loss == pytest.approx(float(errors.sum() / 5), rel=1e-5)
    fresh = make_worker(world, tmp_path, replace(SETTINGS, min_snr_gamma=0.1))
    losses = [
        worker.trainer.validate(worker.batches.validation(worker.validation), 2, 0.8) or []
        for worker in (fresh, make_worker(world, tmp_path, SETTINGS))
    ]
    assert losses[0] == losses[1] and losses[0][0] != losses[0][1]


def test_gradient_checkpointing_changes_no_gradient(world: SimpleNamespace, tmp_path: Path) -> None:
    saved, gradients = [], []
    for checkpointing in (False, True):
        worker = make_worker(world, tmp_path, replace(SETTINGS, gradient_checkpointing=checkpointing))
        batch, sizes = worker.batches.training(worker.order.share(0, 0, 1)), list[int]()

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            worker.trainer.errors(worker.model, batch, 0.8).sum().backward()
        saved.append(sum(sizes))
        gradients.append({name: value.grad for name, value in worker.trainer.parameters.items()})
    assert saved[1] < 0.8 * saved[0]
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert gradient is not None and other is not None and torch.equal(gradient, other), name


def test_a_base_in_bf16_trains_fp32_weights(world: SimpleNamespace, tmp_path: Path) -> None:
    """From the same start: the trained weights begin as copies of the base's before it is rounded. Sheets are drawn too."""
    half = replace(SETTINGS, precision=Precision.BF16, base_dtype=Precision.BF16, sample_records=1, sample_steps=2)
    worker, other = make_worker(world, tmp_path, half), make_worker(world, tmp_path, SETTINGS)
    trained = worker.model.trained_parameters()
    for name, value in other.model.trained_parameters().items():
        assert trained[name].dtype is torch.float32 and torch.equal(trained[name], value)
    frozen = {value.dtype for value in worker.model.parameters() if id(value) not in set(map(id, trained.values()))}
    assert frozen == {torch.bfloat16}
    result = fit(world, tmp_path / "run", half, records=world.pictures)
    assert result.loss_after < result.loss_before and (tmp_path / "run" / "samples" / "step-00000012.png").exists()
    with pytest.raises(ValueError, match="base_dtype=bf16 needs precision=bf16"):
        replace(SETTINGS, base_dtype=Precision.BF16)


def test_bad_inputs_write_nothing(world: SimpleNamespace, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match="no training records at"):
        fit(world, output, records=str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match="no file at"):
        fit(world, output, initial_adapter=str(tmp_path / "absent.safetensors"))
    with pytest.raises(ValueError, match="unet"):
        train(world.caches, str(output), world.image_encoder, world.image_encoder, METHOD, SETTINGS, local=True)
    with pytest.raises(ValueError, match="made for another one"):
        sdxl = tiny_sdxl_base(tmp_path / "sdxl")
        train(world.caches, str(output), sdxl, world.image_encoder, METHOD, SETTINGS, local=True)
    crop = replace(METHOD, image_encoder=ImageEncoderSettings(reference=Reference.CROP))
    table = pq.read_table(next(Path(world.caches).glob("*.parquet")))
    rows = table.to_pylist()
    bare = [row | {"image_features": None} for row in rows]
    wide = [row | {"latents": to_cell(torch.zeros(5, 4, 4))} for row in rows]
    for name, changed, method, message in (
        ("bare", bare, crop, "no cached value and no picture"),
        ("wide", wide, METHOD, "made for another one"),
    ):
        (tmp_path / name).mkdir()
        pq.write_table(type(table).from_pylist(changed, schema=table.schema), tmp_path / name / "a.parquet")
        with pytest.raises(ValueError, match=message):
            fit(world, output, records=str(tmp_path / name), method=method)
    field = table.schema.field("latents").with_metadata({"model": "other@1"})
    (tmp_path / "other").mkdir()
    other = table.set_column(table.schema.get_field_index("latents"), field, table["latents"])
    pq.write_table(other, tmp_path / "other" / "a.parquet")
    with pytest.raises(ValueError, match="latents were made with model other@1"):
        fit(world, output, records=str(tmp_path / "other"))
    assert not output.exists()


def test_sample_sheet_is_a_picture(world: SimpleNamespace, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=2, sample_records=2, sample_steps=2)
    fit(world, tmp_path / "a", settings, records=world.pictures)
    fit(world, tmp_path / "b", settings, records=world.pictures)
    sheets = [tmp_path / name / "samples" / "step-00000002.png" for name in "ab"]
    assert sheets[0].read_bytes() == sheets[1].read_bytes()
    with Image.open(sheets[0]) as sheet:
        colours = sheet.convert("RGB").getcolors(100_000)
        assert sheet.size == (3 * 128, 2 * 128) and colours is not None and len(colours) > 100
