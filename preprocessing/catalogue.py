"""The stages, one row each. A new stage is a folder (a small one a file) and a row here.

A row's functions import the stage's code when they are called: a worker of a cheap stage loads neither torch nor
transformers, and a command's mistakes are found before they load.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from realcustom import record, storage
from realcustom.config import to_dict
from realcustom.errors import UsageError
from realcustom.identity import check_base, model_identity
from realcustom.model_cache import local
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.executors import Executor
from realcustom.preprocessing.engine.model_check import check_weights
from realcustom.preprocessing.engine.stage import ModelSetting, Prepared, Stage, StageInput
from realcustom.preprocessing.engine.unit import identity_of
from realcustom.preprocessing.engine.worker import SourceWork, StageJob, TableWork, Work
from realcustom.preprocessing.ingest.corpus import open_corpus
from realcustom.preprocessing.ingest.url_units import share_hosts
from realcustom.preprocessing.settings import JUDGED, PreprocessSettings
from realcustom.store import Store, refusals

if TYPE_CHECKING:
    from realcustom.settings import MethodSettings


# ingest


def _load_ingest(job: StageJob) -> Work:
    from realcustom.preprocessing.ingest.stage import Ingest

    return SourceWork(Ingest(job.settings.ingest, job.store))


def _describe_ingest(description: dict[str, Any], settings: PreprocessSettings, method: MethodSettings | None) -> None:
    parameters = description["parameters"]
    parameters.pop("corpus")  # is in `upstream`
    parameters.pop("metadata")  # its content about a unit's pictures is in the unit's identity
    parameters.pop("download")  # how it downloads, not what


def _check_tables(job: StageJob, source: StageInput) -> None:
    from realcustom.preprocessing.ingest.corpus import check_tables

    check_tables(source.units, job.settings.ingest, job.store)


INGEST = Stage(
    name="ingest",
    help="Read a source: each picture decoded, sized, hashed and named; unusable ones excluded with the reason.",
    version=11,  # 11: dotted names in shards; 10: a list of URLs knows no commas; 9: each scan of a JPEG of several is looked at
    load=_load_ingest,
    open_source=open_corpus,
    describe=_describe_ingest,
    check_input=_check_tables,
    share=share_hosts,
)


# score


def _load_score(job: StageJob) -> Work:
    from realcustom.preprocessing.score.stage import Score

    return TableWork(Score(job.settings.score, job.models, job.runtime()))


def _check_heads(folder: str) -> None:
    file = Path(local(folder)) / "heads.safetensors"
    if not file.is_file():
        raise UsageError(
            f"score.heads: no file at {file}: make it from LAION's head with `python -m "
            f"realcustom.preprocessing.score.convert_heads`, or set score.heads=null and select.min_aesthetic=null"
        )


SCORE = Stage(
    name="score",
    help="Score every picture: sharpness, and by the neural models that are set. No row leaves.",
    version=3,
    load=_load_score,
    reads=("ingest",),
    needs=tuple(tables.INGESTED),
    models=(
        ModelSetting(name="clip", model_type="clip"),
        ModelSetting(name="heads", check=_check_heads),
        *(ModelSetting(name=name, has_label=True) for name in JUDGED),
    ),
)


# select


def _load_select(job: StageJob) -> Work:
    from realcustom.preprocessing.select.stage import Select

    return TableWork(Select(job.settings.select, job.store))


def _describe_select(description: dict[str, Any], settings: PreprocessSettings, method: MethodSettings | None) -> None:
    folder = settings.select.evaluation_folder
    if folder is not None:
        store = Store(settings.execution.retries)
        if not store.is_dir(folder):
            raise UsageError(f"select.evaluation_folder: no folder at {folder}")
        with refusals("read", folder):
            description["parameters"]["evaluation_folder"] = _content(folder, store)


def _content(folder: str, store: Store) -> str:
    """The content of a folder of pictures, independent of its place; in an object store by the ETags."""
    if not storage.is_remote(folder):
        return model_identity(folder).rpartition("@")[2]
    return identity_of([[entry.name, entry.size, entry.version] for entry in store.list_files(folder)])


def _check_scores(job: StageJob, source: StageInput) -> None:
    from realcustom.preprocessing.select.thresholds import check_scores

    check_scores(job.settings.select, source.description)


def _find_copies(job: StageJob, source: StageInput, executor: Executor) -> Prepared:
    from realcustom.preprocessing.select.search import find_copies

    return find_copies(job, source, executor)


SELECT = Stage(
    name="select",
    help="Keep or drop by thresholds over the scores, and drop duplicates. Cheap: run it again as often as needed.",
    version=7,  # 7: other steps of the search in a large corpus
    load=_load_select,
    reads=("score",),
    needs=(*tables.HASHED, *tables.SCORE_FIELDS),
    describe=_describe_select,
    check_input=_check_scores,
    prepare=_find_copies,
)


# caption


def _load_caption(job: StageJob) -> Work:
    from realcustom.preprocessing.caption.stage import Caption

    return TableWork(Caption(job.settings.caption, job.store.retries, job.models, job.runtime()))


def _describe_caption(description: dict[str, Any], settings: PreprocessSettings, method: MethodSettings | None) -> None:
    parameters = description["parameters"]
    if settings.caption.word is None:  # directories made before these settings keep their names
        parameters.pop("word")
    if not settings.caption.more_nouns:
        parameters.pop("more_nouns")
    endpoint = parameters.pop("endpoint")
    if settings.caption.endpoint.model is not None:  # its URL and its limits do not change a caption
        parameters["endpoint"] = {name: endpoint[name] for name in ("model", "prompt", "seed", "longest_side")}
        parameters.pop("batch_size")


def _ask_endpoint(job: StageJob) -> None:
    if job.settings.caption.endpoint.url is not None:
        from realcustom.preprocessing.caption.endpoint import EndpointCaptioner  # an HTTP client only where one is used

        EndpointCaptioner(job.settings.caption, job.store.retries).check()


CAPTION = Stage(
    name="caption",
    help="Add a synthetic caption to the alt text, and find the words that can name a subject.",
    version=3,
    load=_load_caption,
    reads=("select", "score", "ingest"),
    needs=tuple(tables.INGESTED),
    models=(ModelSetting(name="model", model_type="blip"),),
    describe=_describe_caption,
    check_services=_ask_endpoint,
)


# subjects


def _load_subjects(job: StageJob) -> Work:
    runtime = job.runtime()
    if runtime is None:
        from realcustom.preprocessing.subjects.whole import WholePictures

        return TableWork(WholePictures())
    from realcustom.preprocessing.subjects.stage import Subjects

    return TableWork(Subjects(job.settings.subjects, job.models, runtime))


def _describe_subjects(
    description: dict[str, Any], settings: PreprocessSettings, method: MethodSettings | None
) -> None:
    if settings.subjects.detector is None:  # all other settings are about what models find
        description["parameters"] = {}


SUBJECTS = Stage(
    name="subjects",
    help="Find each target word in its picture: box, mask, checks, crop; or take pictures whole. Writes training records.",
    version=4,
    load=_load_subjects,
    reads=("caption",),
    needs=(*tables.INGESTED, *tables.CAPTION_FIELDS),
    models=(
        ModelSetting(name="detector", model_type="grounding-dino"),
        ModelSetting(name="segmenter", model_type="sam"),
    ),
    describe=_describe_subjects,
)


# views


def _load_views(job: StageJob) -> Work:
    from realcustom.preprocessing.views.stage import Views

    return TableWork(Views(job))


def _require_views(settings: PreprocessSettings, method: MethodSettings | None) -> None:
    _require_set("views", ["encoder"] if settings.views.encoder is None else [])


def _describe_views(description: dict[str, Any], settings: PreprocessSettings, method: MethodSettings | None) -> None:
    description["parameters"].pop("partition_rows")  # how it searches, not what it finds


def _find_views(job: StageJob, source: StageInput, executor: Executor) -> Prepared:
    from realcustom.preprocessing.views.search import find_views

    return find_views(job, source, executor)


VIEWS = Stage(
    name="views",
    help="Link each record with those that show its subject in other pictures, by an image encoder. No row leaves.",
    version=3,
    load=_load_views,
    reads=("subjects",),
    needs=tuple(record.SCHEMA),
    models=(ModelSetting(name="encoder"),),
    check_settings=_require_views,
    describe=_describe_views,
    prepare=_find_views,
)


# encode


def _load_encode(job: StageJob) -> Work:
    from realcustom.preprocessing.encode import Encode

    assert job.method is not None, "checked with the settings"
    return TableWork(Encode(job.settings.encode, job.method, job.models, job.runtime()))


def _require_encode(settings: PreprocessSettings, method: MethodSettings | None) -> None:
    encode = settings.encode
    missing = []
    if (encode.latents or encode.text_features) and encode.base is None:
        missing.append("base")
    if encode.image_features and encode.image_encoder is None:
        missing.append("image_encoder")
    if not encode.keep_image and not encode.latents:
        raise UsageError("encode.keep_image=false needs encode.latents: a record must hold one of the two")
    if encode.buckets.areas and not encode.latents:
        raise UsageError("encode.buckets needs encode.latents: buckets are sizes of latents")
    _require_set("encode", missing)
    if method is None:
        raise UsageError("encode needs the method's settings: they define how a reference is prepared")


def _describe_encode(description: dict[str, Any], settings: PreprocessSettings, method: MethodSettings | None) -> None:
    if method is not None:
        reference = to_dict(method.image_encoder)
        reference.pop("model", None)  # encode.image_encoder is the one that runs, and is in `models`
        description["reference"] = reference
        description["sdxl_pooled"] = method.base.sdxl_pooled.value
    # what has no effect; directories made before there were buckets keep their names
    description["parameters"].pop("resolution" if settings.encode.buckets.areas else "buckets")


def _check_base(model: str) -> None:
    folder = Path(local(model))
    if folder.is_dir():
        check_base(model)
        check_weights(folder, "encode.base")


ENCODE = Stage(
    name="encode",
    help="Add latents, text features and image features of the training recipe to each record.",
    version=6,  # 6: image features of records with views are not compressed
    load=_load_encode,
    reads=("views", "subjects"),
    needs=tuple(record.SCHEMA),
    models=(
        ModelSetting(name="base", check=_check_base, wanted=lambda encode: encode.latents or encode.text_features),
        ModelSetting(name="image_encoder", wanted=lambda encode: encode.image_features),
    ),
    loads_without_weights=False,
    check_settings=_require_encode,
    describe=_describe_encode,
)


# export


def _load_export(job: StageJob) -> Work:
    from realcustom.preprocessing.export import Export

    return TableWork(Export(job.settings.export))


EXPORT = Stage(
    name="export",
    help="Write rows as webdataset shards; rows that came from such shards are written back byte for byte.",
    version=1,
    load=_load_export,
    reads=("select", "caption", "score", "ingest"),
    needs=tuple(tables.INGESTED),
    suffix=".tar",
)


def _require_set(stage: str, missing: list[str]) -> None:
    if missing:
        raise UsageError(f"{stage} needs {' and '.join(f'{stage}.{name}' for name in missing)}")


CHAIN = (INGEST, SCORE, SELECT, CAPTION, SUBJECTS, ENCODE)  # in the order in which they run
CATALOGUE = {stage.name: stage for stage in (*CHAIN[:-1], VIEWS, ENCODE, EXPORT)}


def chain(settings: PreprocessSettings) -> tuple[Stage, ...]:
    """The stages from a source to records with these settings: `views` too, where it has an encoder."""
    optional = () if settings.views.encoder is None else (VIEWS,)
    return (*CHAIN[:-1], *optional, ENCODE)
