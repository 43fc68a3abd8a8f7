"""Images by their keys: what decides them, and that none is drawn twice."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from realcustom.checkpoint import adapter_sha256
from realcustom.errors import UsageError
from realcustom.evaluation.drawing import Drawer, Unit, plan
from realcustom.evaluation.gallery import Gallery
from realcustom.evaluation.methods import AdapterFile, Method, make_methods, named_adapters
from realcustom.evaluation.suite import Photos, Suite
from realcustom.evaluation.suites import read_own
from realcustom.evaluation.table import Setting
from realcustom.sampling import SamplingParams
from realcustom.store import Store
from tests.support.suites import write_suite
from tests.support.tiny import TinyModels

STORE = Store()
BATCH = 3
STEPS, ROWS_A_STEP = 3, 3  # of the tiny adapter: guidance pass, and the two branches of direct guidance


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """Two subjects, with a word that the tiny models know."""
    folder = tmp_path_factory.mktemp("suite")
    drawn = write_suite(folder, subjects=2)
    names = sorted(drawn.scenes)
    (drawn.folder / "subjects.csv").write_text(f"subject,class\n{names[0]},dog\n{names[1]},cat\n")
    drawn.prompts.write_text("a {} on grass\na {} in snow\n")
    return read_own(str(drawn.folder), str(drawn.prompts), STORE, images_per_prompt=2, seed=0)


@pytest.fixture(scope="module")
def methods(tiny_models: TinyModels) -> list[Method]:
    adapter = AdapterFile(
        name="a",
        file=tiny_models.adapter,
        sha256=adapter_sha256(tiny_models.adapter),
        sampler={},
        image_encoder=tiny_models.image_encoder,
    )
    return make_methods([adapter], list(Setting), {"base": "tiny"})


def drawer(output: Path, base: str) -> Drawer:
    return Drawer(output=str(output), base=base, sampling=SamplingParams(), batch_size=BATCH, device="cpu")


def hashes(output: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.rglob("*.png"))}


def test_rows_and_keys(suite: Suite, methods: list[Method]) -> None:
    assert [method.name for method in methods] == ["text_to_image", "a", "a without mask", "a wrong reference"]
    photos, case = Photos(STORE), suite.cases[0]
    keys = {method.name: method.key(case, photos) for method in methods}
    assert len(set(keys.values())) == 4
    plain, own = methods[0], methods[1]
    assert plain.references(case) == [] and own.references(case)[0][1] == case.references[0].given
    assert methods[3].references(case)[0][1] == case.references[0].wrong
    for changed in (replace(case, seed=9), replace(case, prompt="a dog")):
        assert own.key(changed, photos) != keys["a"]
    other = replace(own, identity={**own.identity, "sampling": {"num_inference_steps": 7}})
    assert other.key(case, photos) != keys["a"]
    assert own.key(replace(case, group="else", prompt_id="9"), photos) == keys["a"]  # they decide no pixel


def test_a_subjects_content_decides_not_its_path(suite: Suite, methods: list[Method], tmp_path: Path) -> None:
    photos, case = Photos(STORE), suite.cases[0]
    reference = case.references[0]
    copy = tmp_path / "elsewhere.png"
    copy.write_bytes(Path(reference.given.uri).read_bytes())
    moved = replace(case, references=(replace(reference, given=replace(reference.given, uri=str(copy))),))
    assert methods[1].key(moved, photos) == methods[1].key(case, photos)
    copy.write_bytes(Path(reference.photos[1].uri).read_bytes())
    assert methods[1].key(moved, Photos(STORE)) != methods[1].key(case, photos)


def test_the_order_and_the_number_of_workers_change_no_byte(
    suite: Suite, methods: list[Method], tiny_models: TinyModels, tmp_path: Path
) -> None:
    photos, two = Photos(STORE), methods[:2]
    units = plan(two, suite.cases, photos, set(), BATCH)
    assert sum(len(unit.cases) for unit in units) == 16 and {len(unit.cases) for unit in units} == {3, 2}
    assert sum(drawer(tmp_path / "one", tiny_models.base).draw(units)) == 16
    turned = plan(two[::-1], suite.cases[::-1], photos, set(), BATCH)
    for part in (turned[1::2], turned[::2]):  # as two workers would, one after the other
        list(drawer(tmp_path / "two", tiny_models.base).draw(part))
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_what_is_there_is_not_drawn_again(
    suite: Suite, methods: list[Method], tiny_models: TinyModels, tmp_path: Path
) -> None:
    photos, gallery = Photos(STORE), Gallery(str(tmp_path), STORE)
    units = plan(methods[1:2], suite.cases, photos, gallery.done(), BATCH)
    going = drawer(tmp_path, tiny_models.base).draw(units)
    next(going)
    going.close()  # stopped after one unit
    lost = next(iter(units[0].keys))
    (tmp_path / "images" / f"{lost}.json").unlink()  # killed between an image and its facts
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "images").glob("*.json")}
    rest = plan(methods[1:2], suite.cases, photos, gallery.done(), BATCH)
    assert sum(len(unit.cases) for unit in rest) == 8 - 2
    list(drawer(tmp_path, tiny_models.base).draw(rest))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert plan(methods[1:2], suite.cases, photos, gallery.done(), BATCH) == []


def test_what_an_image_costs_is_kept(
    suite: Suite, methods: list[Method], tiny_models: TinyModels, tmp_path: Path
) -> None:
    units = plan(methods[1:2], suite.cases[:2], Photos(STORE), set(), BATCH)
    list(drawer(tmp_path, tiny_models.base).draw(units))
    facts = Gallery(str(tmp_path), STORE).facts(units[0].keys)
    for key, fact in facts.items():
        assert fact.sha256 == hashlib.sha256((tmp_path / "images" / f"{key}.png").read_bytes()).hexdigest()
        assert fact.forwards == STEPS * ROWS_A_STEP and fact.seconds > 0 and fact.peak_bytes > 10**6
    assert json.loads((tmp_path / "images" / f"{units[0].keys[0]}.json").read_text())["forwards"]


def test_an_image_that_two_rows_share_is_drawn_once(suite: Suite, methods: list[Method]) -> None:
    same = [replace(case, prompt="a dog on grass", seed=0) for case in suite.cases]
    [unit] = plan(methods[:1], same, Photos(STORE), set(), BATCH)
    assert isinstance(unit, Unit) and len(unit.cases) == 1


def test_names_of_adapters() -> None:
    assert named_adapters(["x/a.safetensors", "b=x/a.safetensors"]) == {"a": "x/a.safetensors", "b": "x/a.safetensors"}
    assert named_adapters(["s3://k/a=b/c.safetensors"]) == {"c": "s3://k/a=b/c.safetensors"}
    with pytest.raises(UsageError, match="two adapters are called 'adapter'"):
        named_adapters(["x/adapter.safetensors", "y/adapter.safetensors"])
    with pytest.raises(UsageError, match="is the name of another row"):
        named_adapters(["oracle=x.safetensors"])
