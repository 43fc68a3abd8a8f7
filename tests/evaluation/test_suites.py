"""Readers of suites: counts, words, masks, and what is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from realcustom.errors import UsageError
from realcustom.evaluation import dreambench, published, suites
from realcustom.evaluation.suite import Photo, Photos
from realcustom.store import Store
from tests.support.suites import write_suite

DREAMBENCH = Path(__file__).parents[3] / "shared" / "data" / "dreambench"
STORE = Store()


def picture(path: Path, colour: str = "red", size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DreamBench's layout, all subjects, two small pictures each."""
    folder = tmp_path_factory.mktemp("dreambench")
    for name in dreambench.CLASSES:
        for number in range(2):
            picture(folder / name / f"0{number}.jpg")
    return folder


def test_dreambench_is_counted(whole: Path) -> None:
    suite = suites.read_dreambench(str(whole), STORE, images_per_prompt=4, seed=0)
    assert len(suite.cases) == 30 * 25 * 4
    assert "30 of 30 subjects (9 live, 21 objects) with 60 pictures x 25 prompts x 4 images = 3000" in suite.counts
    assert len(set(dreambench.OBJECT_PROMPTS)) == len(set(dreambench.LIVE_PROMPTS)) == 25
    bear = next(case for case in suite.cases if case.subject == "bear_plushie")
    assert bear.prompt == "a stuffed animal in the jungle" and bear.references[0].word == "stuffed animal"
    dog = next(case for case in suite.cases if case.subject == "dog")
    assert dog.group == "live" and dog.references[0].given.uri.endswith("dog/00.jpg")
    assert dog.references[0].wrong == Photo(uri=str(whole / "dog2" / "00.jpg"))  # another one of the same word
    assert {case.seed for case in suite.cases} == {0, 1, 2, 3}


@pytest.mark.skipif(not DREAMBENCH.is_dir(), reason="the photographs of shared/data are not here")
def test_the_photographs_of_dreambench() -> None:
    suite = suites.read_dreambench(str(DREAMBENCH), STORE, images_per_prompt=4, seed=0)
    assert suite.counts.startswith("dreambench: 20 of 30 subjects (6 live, 14 objects) with 105 pictures")
    prompts = json.loads((DREAMBENCH / "prompts.json").read_text())
    assert prompts == {"object": list(dreambench.OBJECT_PROMPTS), "live": list(dreambench.LIVE_PROMPTS)}
    Photos(STORE).check(list(suite.photos().values()))


def test_a_missing_subject_is_named(whole: Path, tmp_path: Path) -> None:
    for name in dreambench.CLASSES:
        if name != "teapot":
            (tmp_path / name).symlink_to(whole / name)
    with pytest.raises(UsageError, match=r"the subject 'teapot' is missing: no picture .* in .*teapot"):
        suites.read_dreambench(str(tmp_path), STORE, images_per_prompt=1, seed=0)


def test_a_part_of_dreambench_is_listed(whole: Path, tmp_path: Path) -> None:
    for name in ("cat", "vase"):
        (tmp_path / name).symlink_to(whole / name)
    (tmp_path / "subjects.csv").write_text("subject,class,live\ncat,cat,yes\nvase,vase,no\n")
    assert len(suites.read_dreambench(str(tmp_path), STORE, images_per_prompt=1, seed=5).cases) == 50
    (tmp_path / "subjects.csv").write_text("subject,class\nunicorn,horse\n")
    with pytest.raises(UsageError, match="DreamBench has no subject 'unicorn'"):
        suites.read_dreambench(str(tmp_path), STORE, images_per_prompt=1, seed=0)


def test_ones_own_suite(tmp_path: Path) -> None:
    suite = write_suite(tmp_path).read()
    assert len(suite.cases) == 4 * 3 * 2 and suite.counts == "own: 4 subjects x 3 prompts x 2 images = 24"
    reference = suite.cases[0].references[0]
    assert reference.word in suite.cases[0].prompt and len(reference.photos) == 3
    assert reference.given.mask is not None and reference.given.mask.endswith("00.mask.png")


def test_a_folders_name_is_the_word_where_nothing_else_is_said(tmp_path: Path) -> None:
    for name in ("red_mug", "lamp"):
        picture(tmp_path / "photos" / name / "a.png")
    (tmp_path / "prompts.txt").write_text("a {} in the snow\n\n")
    read = suites.read_own(str(tmp_path / "photos"), str(tmp_path / "prompts.txt"), STORE, images_per_prompt=1, seed=0)
    assert [case.prompt for case in read.cases] == ["a lamp in the snow", "a red mug in the snow"]


@pytest.mark.parametrize(("line", "said"), [("a cat in the snow", "has no {}"), ("a {} and a {}", "has no {}")])
def test_a_prompt_without_its_place_is_named_by_its_line(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "prompts.txt").write_text(f"a {{}} on grass\n{line}\n")
    with pytest.raises(UsageError) as refused:
        suites.read_prompts(str(tmp_path / "prompts.txt"), STORE)
    assert "prompts.txt, line 2" in str(refused.value) and said in str(refused.value)


def test_a_limit_takes_subjects_in_turn(tmp_path: Path) -> None:
    suite = write_suite(tmp_path).read()
    limited = suite.limited(6)
    assert len(limited.cases) == 6 and {case.subject for case in limited.cases} == {
        case.subject for case in suite.cases
    }
    assert suite.limited(1000) is suite
    with pytest.raises(UsageError, match="--limit 3 leaves 1 of the 4 subjects without an image"):
        suite.limited(3)


def test_one_subject_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has 1 subject\(s\)"):
        write_suite(tmp_path, subjects=1).read().limited(None)


def test_pictures_and_masks_that_are_none(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "small.png", size=(4, 8))
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    photos = Photos(STORE)
    photos.check([Photo(uri=str(tmp_path / "a.png"))])
    with pytest.raises(UsageError, match=r"cut\.png does not decode as a picture"):
        photos.check([Photo(uri=str(tmp_path / "cut.png"))])
    with pytest.raises(UsageError, match=r"mask .*small\.png is 4 x 8, its picture 8 x 8"):
        photos.check([Photo(uri=str(tmp_path / "a.png"), mask=str(tmp_path / "small.png"))])


@pytest.fixture(scope="module")
def plus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DreamBench++'s layout."""
    folder = tmp_path_factory.mktemp("plus")
    kinds = {"live_subject/animal": 40, "live_subject/human": 30, "object": 50, "style": 30}
    for kind, number in kinds.items():
        for index in range(number):
            picture(folder / "images" / kind / f"{index:02}.jpg")
            captions = folder / "captions" / kind / f"{index:02}.txt"
            captions.parent.mkdir(parents=True, exist_ok=True)
            captions.write_text("cat\n" + "".join(f"two cats, scene {line}\n" for line in range(9)))
    return folder


def test_dreambench_plus_is_counted(plus: Path) -> None:
    suite = published.read_dreambench_plus(str(plus), STORE, images_per_prompt=1, seed=0)
    assert len(suite.cases) == 150 * 9
    assert "150 pictures (40 animal, 30 human, 50 object, 30 style) x 9 prompts x 1 images = 1350" in suite.counts


def test_a_prompt_of_dreambench_plus_without_its_word(plus: Path, tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(plus / "images")
    for path in (plus / "captions").rglob("*.txt"):
        copy = tmp_path / path.relative_to(plus)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    (tmp_path / "captions" / "object" / "03.txt").write_text("cat\n" + "a dog\n" * 9)
    with pytest.raises(UsageError, match=r"object/03\.txt, line 2: the word 'cat' is not in the prompt 'a dog'"):
        published.read_dreambench_plus(str(tmp_path), STORE, images_per_prompt=1, seed=0)
    (tmp_path / "captions" / "object" / "03.txt").write_text("cat\na cat\n")
    with pytest.raises(UsageError, match=r"has 2 lines, DreamBench\+\+ has the word and 9 prompts"):
        published.read_dreambench_plus(str(tmp_path), STORE, images_per_prompt=1, seed=0)


def test_omnicontext_needs_words(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    rows = [
        {
            "key": f"{task}-{index}",
            "task_type": task,
            "instruction": "the cat beside the dog",
            "input_images": [{"bytes": data, "path": None}] * (2 if "multi" in task else 1),
        }
        for task in published.OMNI_TASKS
        for index in range(50)
    ]
    tables = tmp_path / "tables"
    tables.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tables / "train.parquet")

    def read() -> list[str]:
        found = published.read_omnicontext(str(tables), str(tmp_path / "out"), STORE, images_per_prompt=1, seed=0)
        return [found.counts, *(case.subject for case in found.cases)]

    with pytest.raises(UsageError, match=r"write .*words\.csv with the columns key and words"):
        read()
    (tables / "words.csv").write_text("key,words\nmulti_object-0,cat; dog\nsingle_object-1,cat\n")
    assert read() == [
        "omnicontext: 2 of 400 rows have words, x 1 images = 2",
        "multi_object-0-0+multi_object-0-1",
        "single_object-1-0",
    ]
    (tables / "words.csv").write_text("key,words\nmulti_object-0,cat\n")
    with pytest.raises(UsageError, match=r"words\.csv, line 2: 1 words for the 2 pictures of multi_object-0"):
        read()
    (tables / "words.csv").write_text("key,words\nsingle_object-0,horse\n")
    with pytest.raises(UsageError, match=r"line 2: the word 'horse' is not in the prompt"):
        read()
    pq.write_table(pa.Table.from_pylist(rows[:-1]), tables / "train.parquet")
    with pytest.raises(UsageError, match="here are 49 of scene_character_object"):
        read()
