"""Ask one after another until somebody answers: failover of a single request.

Used for everything that is asked rather than streamed (past bars, option chains, news). Order, health and
quotas are the caller's affair; nothing is remembered from one call to the next. Pure control flow: it
starts no task and does no I/O of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import msgspec

from services.errors import ProviderError, ProviderUnavailable, Verdict, WireFormatError

_Candidate = TypeVar("_Candidate")
_Result = TypeVar("_Result")


class Refusal(msgspec.Struct, frozen=True):
    """Why one provider did not answer: its code, a short stable reason, and the same in words.

    `final`: asking it the same again will not help. `retry_after_s` is the wait it asked for, if it did.
    """

    provider_code: str
    reason: str
    message: str
    final: bool = False
    retry_after_s: float | None = None


class NobodyAnswered(ProviderUnavailable):
    """Every candidate refused, or there was none; `refusals` says why, in the order they were asked."""

    def __init__(self, refusals: tuple[Refusal, ...]) -> None:
        told = "; ".join(f"{refusal.provider_code}: {refusal.message}" for refusal in refusals)
        super().__init__(told or "no provider can answer this", reason="nobody_answered")
        self.refusals = refusals


async def first_that_answers(
    candidates: Iterable[tuple[str, _Candidate]],
    call: Callable[[_Candidate], Awaitable[_Result]],
) -> tuple[_Result, str, tuple[Refusal, ...]]:
    """Return the first answer, the code of the provider that gave it, and who refused before.

    `candidates` are (provider code, whatever `call` is given), best first; the next one is asked only
    when the one before raised a `ProviderError`, `WireFormatError`, `ValueError` (it has not what is
    asked for), `TimeoutError` or `OSError`. Any other exception is a defect and goes through.
    Raises `NobodyAnswered` when none is left.
    """
    refusals: list[Refusal] = []
    for code, candidate in candidates:
        try:
            return await call(candidate), code, tuple(refusals)
        except ProviderError as error:
            final = error.verdict is Verdict.DROP
            refusals.append(Refusal(code, error.reason, str(error), final, error.retry_after_s))
        except WireFormatError as error:
            refusals.append(Refusal(code, error.reason, str(error)))
        except TimeoutError:
            refusals.append(Refusal(code, "timeout", "it did not answer in time"))
        except (ValueError, OSError) as error:
            kind = "not_offered" if isinstance(error, ValueError) else "unreachable"
            words = str(error) or type(error).__name__
            refusals.append(Refusal(code, kind, words, final=isinstance(error, ValueError)))
    raise NobodyAnswered(tuple(refusals))
