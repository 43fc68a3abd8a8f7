"""Images that are not drawn: real pictures, and somebody else's pictures of a suite.

The latter lie in a folder as SUBJECT/PROMPT-NUMBER.png, as `backpack/03-0.png`: the prompt's number counts from 00 within the
subject, the image's number from 0 within the prompt. A mask of an image's subject may lie beside it, as
`backpack/03-0.mask.png`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.evaluation.methods import ORACLE
from realcustom.evaluation.metrics import Judged
from realcustom.evaluation.suite import Suite, SuiteCase, photos_among
from realcustom.store import Store


def given_images(name: str, folder: str, cases: Sequence[SuiteCase], store: Store) -> list[Judged]:
    """The picture of each case. Raises UsageError, naming the first, where pictures are missing."""
    names = {entry.uri: entry.name.rpartition(".")[0] for entry in store.list_files(folder)}
    there = {names[photo.uri]: photo for photo in photos_among(list(names))}
    missing = [stem_of(case) for case in cases if stem_of(case) not in there]
    if missing:
        raise UsageError(
            f"--images {folder}: {len(missing)} of {len(cases)} pictures are missing, the first is "
            f"{storage.join(folder, missing[0])}.png"
        )
    return [Judged(method=name, case=case, photo=there[stem_of(case)]) for case in cases]


def real_images(suite: Suite) -> list[Judged]:
    """The oracle's row: right answers where they are known, else each real picture against its subject's others."""
    truths = [
        Judged(method=ORACLE, case=case, photo=case.truth, real=True) for case in suite.cases if case.truth is not None
    ]
    if truths:
        return truths
    references = {one.subject: one for case in suite.cases for one in case.references}
    found = []
    for reference in references.values():
        for index, photo in enumerate(reference.photos if len(reference.photos) > 1 else ()):
            others = tuple(other for other in reference.photos if other != photo)
            case = SuiteCase(
                references=(replace(reference, photos=others),), prompt="", prompt_id=f"real {index:02}", seed=0
            )
            found.append(Judged(method=ORACLE, case=case, photo=photo, real=True))
    return found


def stem_of(case: SuiteCase) -> str:
    """The name of a case's picture, without the extension."""
    return f"{case.subject}/{case.prompt_id}-{case.number}"
