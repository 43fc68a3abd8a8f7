"""What an evaluation asks: the hard kinds contradict their references, and a corpus can leave combinations out."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from realcustom.sprites.corpus import CorpusSettings, write_corpus
from realcustom.sprites.questions import HARD, Kind, other_views, question, stolen
from realcustom.sprites.world import BACKGROUNDS, NOUNS, OPPOSITE, PLACES, Split, identities, is_held_out


@pytest.mark.parametrize("kind", HARD)
def test_references_of_hard_questions_contradict_the_prompt(kind: Kind) -> None:
    for index in range(40):
        asked = question(kind, index)
        assert len(asked.references) == (2 if kind is Kind.TWO_SUBJECTS else 1)
        for reference, placed in zip(asked.references, asked.target.subjects, strict=False):
            (shown,) = reference.subjects
            assert shown.identity == placed.identity
            assert shown.place == OPPOSITE[placed.place] and reference.background != asked.target.background
            assert not is_held_out(shown.identity.noun, reference.background, shown.place)


@pytest.mark.parametrize("kind", list(Kind))
def test_questions_are_the_same_each_time_and_of_the_evaluations_identities(kind: Kind) -> None:
    pool = set(identities(Split.EVALUATION))
    for index in range(20):
        asked = question(kind, index)
        assert asked == question(kind, index)
        for right, wrong in zip(asked.references, asked.wrong_references, strict=True):
            one, other = right.subjects[0].identity, wrong.subjects[0].identity
            assert one in pool and other in pool and one.noun == other.noun and one.body != other.body
            assert right.background == wrong.background
    assert len({question(kind, index).target for index in range(20)}) == 20


def test_a_second_object_is_of_another_noun_at_the_opposite_place() -> None:
    for kind in (Kind.BYSTANDER, Kind.TWO_SUBJECTS):
        first, second = question(kind, 3).target.subjects
        assert first.identity.noun != second.identity.noun and second.place == OPPOSITE[first.place]
        thief = stolen(question(kind, 3).target).subjects[1].identity
        assert (thief.noun, thief.body, thief.pattern) == (
            second.identity.noun,
            first.identity.body,
            first.identity.pattern,
        )


def test_other_views_show_the_subject_elsewhere() -> None:
    asked = question(Kind.PLAIN, 0)
    views = other_views(asked, 4)
    assert len({view.texture_seed for view in views} | {asked.references[0].texture_seed}) == 5
    assert {view.subjects[0].identity for view in views} == {asked.target.subjects[0].identity}


def test_unseen_questions_ask_for_what_a_corpus_can_leave_out(tmp_path: Path) -> None:
    for noun in NOUNS:
        assert sum(is_held_out(noun, background, place) for background in BACKGROUNDS for place in PLACES) == 4
    for index in range(20):
        target = question(Kind.UNSEEN, index).target
        assert is_held_out(target.subjects[0].identity.noun, target.background, target.subjects[0].place)
    counts = write_corpus(tmp_path, CorpusSettings(pictures=60, per_shard=60, corrupted=0, leave_out=True))
    truth = pq.read_table(tmp_path / "truth.parquet").to_pylist()
    assert counts["pictures"] == len(truth) == 60
    assert not any(is_held_out(row["noun"], row["background"], row["place"]) for row in truth)
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "shards" / "shard-00000.tar").read_bytes())) as tar:
        assert len(tar.getnames()) == 180
