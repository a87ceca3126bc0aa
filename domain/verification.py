"""Who a worker is: documents that they hand in and operations judge, and what follows from those that stand."""

from collections.abc import Collection, Iterable, Mapping
from typing import Final, Literal, Protocol

import msgspec

from domain.acts import Act
from domain.policy import Policy
from domain.ports import Page

Kind = Literal["identity", "licence"]
State = Literal["pending", "approved", "rejected"]
DOCUMENTS_MOST: Final = 50
"""Of one worker, those that were rejected or have run out too."""
_SHOWN: Final = 4


class WorkerDocument(msgspec.Struct, frozen=True):
    """A document as it stands. `number_tail` is all of its number that anybody is shown; Unix ms, `expires_at` 0: not said.

    A licence is one for a skill; other kinds have none.
    """

    id: str
    worker_id: str
    kind: Kind
    upload_id: str
    state: State
    created_at: int
    skill: str = ""
    number_tail: str = ""
    expires_at: int = 0
    reviewed_at: int | None = None
    reviewed_by: str | None = None
    reason: str = ""


class Review(msgspec.Struct, frozen=True):
    """What operations say of a document. `expires_at` is set where it is approved, `reason` where it is not."""

    approved: bool
    by: str
    at: int
    expires_at: int = 0
    reason: str = ""


class WorkerDocuments(Protocol):
    """Documents of workers. Numbers are stored encrypted. Every method may raise `StoreUnavailable`."""

    async def add(self, document: WorkerDocument, number: str) -> tuple[WorkerDocument, bool]:
        """Store it as pending; the same again is how it stands, and True.

        Raises:
            Refusal: `invalid` where the upload is not the worker's own document, or is in another one already;
                `idempotency_mismatch` where the id is another document's; `conflict` where there are too many.
        """
        ...

    async def list_of(self, worker_id: str) -> list[WorkerDocument]:
        """Latest first."""
        ...

    async def find(self, state: State, cursor: str | None, limit: int) -> Page:
        """`WorkerDocument`s in that state, oldest first. Refusal `invalid` for a cursor that no page has given out."""
        ...

    async def review(self, document_id: str, review: Review, act: Act) -> WorkerDocument:
        """Judge it, once; what its worker may do changes, and `act` is written down, in the same transaction.

        The same judgement again is how it stands. Refusal `not_found`, `forbidden` for one's own, or `conflict` with
        `current` for another one.
        """
        ...


def tail_of(number: str) -> str:
    """The last characters of a number: four, or fewer where that were half of it or more."""
    return number[-min(_SHOWN, len(number) // 3) :] if len(number) >= 3 else ""


def standing(approved: Iterable[tuple[str, str, int]]) -> tuple[int, dict[str, int]]:
    """From (kind, skill, until when) of what was approved: until when the identity is known, and each skill's licence."""
    identity_until, licences = 0, dict[str, int]()
    for kind, skill, until in approved:
        if kind == "identity":
            identity_until = max(identity_until, until)
        else:
            licences[skill] = max(licences.get(skill, 0), until)
    return identity_until, licences


def missing(category: str, identity_until: int, licences: Mapping[str, int], policy: Policy, at_ms: int) -> Kind | None:
    """What somebody lacks at that time for work of this category, if anything."""
    wanted = policy.category(category)
    if wanted.verified and identity_until <= at_ms:
        return "identity"
    if wanted.licence and licences.get(category, 0) <= at_ms:
        return "licence"
    return None


def is_verified(
    skills: Collection[str], identity_until: int, licences: Mapping[str, int], policy: Policy, now_ms: int
) -> bool:
    """Whether who they are is known now, and every licence is there that their skills ask for."""
    licensed = (licences.get(skill, 0) > now_ms for skill in skills if policy.category(skill).licence)
    return identity_until > now_ms and all(licensed)
