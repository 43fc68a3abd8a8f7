"""The deployment that keeps answers for all processes of the API, as each of them asks it."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from realcustom.inference.answer_keeper import HOLD_SECONDS, Claim, Name
from realcustom.inference.errors import EngineLost

ANSWER_SECONDS = 5.0  # within which it answers, beside the time for which a claim is held


class RemoteKeeper:
    """See `answer_keeper.Keeper`. Each method raises EngineLost where the process is gone, or silent for too long."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self.handle = handle

    async def claim(self, name: Name, digest: bytes, maker: str) -> Claim:
        """See `AnswerKeeper`, as all others."""
        claim: Claim = await self._ask("claim", name, digest, maker, seconds=HOLD_SECONDS + ANSWER_SECONDS)
        return claim

    async def renew(self, name: Name, maker: str) -> None:
        await self._ask("renew", name, maker)

    async def keep(self, name: Name, digest: bytes, maker: str, answer: bytes) -> None:
        await self._ask("keep", name, digest, maker, answer)

    async def give_up(self, name: Name, maker: str) -> None:
        await self._ask("give_up", name, maker)

    async def _ask(self, method: str, *arguments: Any, seconds: float | None = None) -> Any:
        response = getattr(self.handle, method).remote(*arguments)
        try:
            async with asyncio.timeout(ANSWER_SECONDS if seconds is None else seconds):
                return await response
        except TimeoutError as error:
            raise EngineLost("the process that keeps answers does not answer; try again") from error
        except (RayActorError, RayServeException) as error:
            raise EngineLost("the process that keeps answers ended; try again") from error
        finally:
            response.cancel()  # no effect on what is done
