"""A conversation with a base and its adapter: who answers, and with which answer it goes on."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal
from uuid import uuid4

from orpo_mlx.data.pairs.messages import Message
from orpo_mlx.data.pairs.split import hash_prompt
from orpo_mlx.judging.answers import SampledAnswer, folded
from orpo_mlx.judging.votes import Choice, EditedAnswer, Vote
from orpo_mlx.sampling.chat_votes import ChatVotes
from orpo_mlx.sampling.voices import Show, Voices, Who

CHOICES: tuple[Choice, Choice] = ("first", "second")


@dataclass
class Turn:
    """A message with its one answer, or its two in the order that they are shown in."""

    prompt: list[Message]  # all messages up to this one
    ids: dict[Who, list[int]]  # what those who answer are given, in the order of their answers
    item: str = field(default_factory=lambda: uuid4().hex)
    answers: list[SampledAnswer] = field(default_factory=list)
    chosen: int | None = None  # the answer, from 0, with which the conversation goes on
    edit: str | None = None  # what it goes on with instead
    vote: Vote | None = None

    @property
    def speakers(self) -> list[Who]:
        """Who answers, in order."""
        return list(self.ids)

    @property
    def is_open(self) -> bool:
        """Whether one of two answers is to be chosen yet."""
        return len(self.answers) == 2 and self.chosen is None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was answered, not even an end."""
        return all(answer.cut and not answer.tokens for answer in self.answers)


class Talk:
    """The conversation so far. Votes are kept in the folder of `votes`, as they are made."""

    def __init__(
        self, voices: Voices, votes: ChatVotes, *, seed: int, system: str, order: random.Random
    ):
        self.voices, self.votes, self.system = voices, votes, system
        self.mode: Who | Literal["both"] = "adapter" if voices.switch else "base"
        self.turns: list[Turn] = []
        self._seed, self._order = seed, order
        self._numbers = Counter[tuple[Who, int]]()

    @property
    def turn(self) -> Turn | None:
        """The last message and its answers."""
        return self.turns[-1] if self.turns else None

    @property
    def messages(self) -> list[Message]:
        """The conversation as a model is given it: no thoughts, of two answers the chosen one."""
        messages: list[Message] = []
        if self.system:
            messages.append({"role": "system", "content": self.system})
        for turn in self.turns:
            answer = turn.answers[turn.chosen or 0]
            text = answer.text if turn.edit is None else turn.edit
            messages += [turn.prompt[-1], {"role": "assistant", "content": text}]
        return messages

    def ask(self, text: str, show_next: Callable[[Turn, Who], Show]) -> Turn:
        """Let a message be answered; `show_next` gives what shows the next answer of a turn.

        Raises OrpoError, with the conversation as it was, if the message cannot be answered. An
        empty turn, whose answers were stopped before they began, is not part of the conversation.
        """
        prompt = [*self.messages, {"role": "user", "content": text}]
        voices = self.voices.voices
        turn = Turn(prompt, {w: voices[w].encoder.prompt_ids(prompt) for w in self._speakers()})
        for who in turn.speakers:
            turn.answers.append(self._answer(turn, who, show_next(turn, who)))
        if turn.is_empty:
            return turn
        if len({folded(answer.text) for answer in turn.answers}) == 1:
            turn.chosen = 0
        if self.turn and self.turn.is_open:
            self.turn.chosen = 0
        self.turns.append(turn)
        return turn

    def _speakers(self) -> list[Who]:
        if self.mode != "both":
            return [self.mode]
        both: list[Who] = ["base", "adapter"]
        self._order.shuffle(both)
        return both

    def _answer(self, turn: Turn, who: Who, show: Show) -> SampledAnswer:
        """The next answer of one to this prompt: asked again, it draws another."""
        asked = who, hash_prompt(turn.prompt, None)
        self._numbers[asked] += 1
        number = self._numbers[asked] - 1
        return self.voices.answer(who, turn.prompt, turn.ids[who], number, self._seed, show)

    def choose(self, turn: Turn, chosen: int) -> None:
        """Vote for one of two answers, from 0: the conversation goes on with it."""
        turn.vote = self.votes.add(turn.item, turn.answers, CHOICES[chosen])
        turn.chosen = chosen

    def edit(self, turn: Turn, of: int, text: str) -> None:
        """Vote for a text of one's own over an answer, from 0: the conversation goes on with it.

        Which of two answers is better is not asked again: an earlier vote on them stays.
        """
        edit = EditedAnswer(of=turn.answers[of].id, text=text)
        choice = turn.vote.choice if turn.vote else "skip"
        turn.vote = self.votes.add(turn.item, turn.answers, choice, edit=edit, earlier=turn.vote)
        turn.chosen, turn.edit = of, text

    def begin_again(self) -> None:
        """A new conversation with the same system message."""
        self.turns = []
