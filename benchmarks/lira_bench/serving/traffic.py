"""Many clients at once, and the same questions asked alone."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import httpx

from lira_bench.serving.client import Reply, ask
from lira_bench.serving.questions import Conversation
from lira_engine.errors import LiraError

_PATIENCE = 120.0  # seconds for one answer
_STREAMED = 0.5  # share of the requests
_LEAVES_BEFORE = 8  # events
Question = tuple[str, int, int]  # kind of conversation, picture, turn


@dataclass(frozen=True)
class Outcome:
    """A request and what came of it."""

    conversation: Conversation
    turn: int
    streamed: bool
    reply: Reply

    @property
    def question(self) -> Question:
        return self.conversation.kind, self.conversation.number, self.turn


def open_client(url: str, connections: int = 1) -> httpx.AsyncClient:
    """Return a client that keeps its connections."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.AsyncClient(base_url=url, timeout=_PATIENCE, limits=limits, trust_env=False)


async def alone(url: str, asked: Sequence[Conversation]) -> dict[Question, Reply]:
    """Ask all questions one after the other, as a stream where that is possible.

    Raises LiraError for an answer that fails, or differs as a whole from what it was as a stream.
    """
    found: dict[Question, Reply] = {}
    async with open_client(url) as client:
        for conversation in asked:
            answers: list[str] = []
            for turn in range(len(conversation.asks)):
                streamed = await ask(client, conversation, turn, answers, stream=True)
                whole = await ask(client, conversation, turn, answers)
                for reply in (streamed, whole):
                    if not reply.complete:
                        name = conversation.name(turn)
                        raise LiraError(f"{name}, asked alone, failed: {reply.status} {reply.error}")
                if different := difference(whole, streamed):
                    raise LiraError(
                        f"{conversation.name(turn)}: the {different} of a whole answer are not a stream's"
                    )
                found[conversation.kind, conversation.number, turn] = streamed
                answers.append(streamed.text)
    return found


def difference(reply: Reply, expected: Reply) -> str:
    """Return which part of an answer is another one: "text", "tokens", "masks", or ""."""
    if reply.text != expected.text:
        return "text"
    if reply.tokens is not None and expected.tokens is not None and reply.tokens != expected.tokens:
        return "tokens"
    return "masks" if reply.masks != expected.masks else ""


async def together(
    url: str, asked: Sequence[Conversation], clients: int, seconds: float, leave: float, seed: int
) -> list[Outcome]:
    """Let clients ask for some seconds, each one question after the other, and return all that came of it."""
    until = time.perf_counter() + seconds
    outcomes: list[Outcome] = []
    async with open_client(url, clients) as client:
        lives = [
            _live(client, asked, until, leave, random.Random(f"{seed} {number}"), outcomes)
            for number in range(clients)
        ]
        await asyncio.gather(*lives)
    return outcomes


async def _live(
    client: httpx.AsyncClient,
    asked: Sequence[Conversation],
    until: float,
    leave: float,
    chance: random.Random,
    outcomes: list[Outcome],
) -> None:
    for conversation in drawn(asked, chance):
        answers: list[str] = []
        while len(answers) < len(conversation.asks):
            if time.perf_counter() >= until:
                return
            turn = len(answers)
            leaves = chance.randint(1, _LEAVES_BEFORE) if chance.random() < leave else None
            streamed = leaves is not None or chance.random() < _STREAMED
            reply = await ask(client, conversation, turn, answers, streamed, leaves)
            outcomes.append(Outcome(conversation, turn, streamed, reply))
            if reply.complete:
                answers.append(reply.text)
            elif reply.status == 503:
                await asyncio.sleep(reply.retry_after * chance.uniform(0.5, 1.0))
            else:
                break


def drawn(asked: Sequence[Conversation], chance: random.Random) -> Iterator[Conversation]:
    """Yield conversations as they come, without an end."""
    while True:
        yield chance.choice(asked)
