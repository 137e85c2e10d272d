"""`orpo-mlx chat`: a conversation with a base and its adapter, and votes on what they answer."""

import os
import random
import sys
from contextlib import redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

import click

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.cli.settings import nearest
from orpo_mlx.cli.streams import is_utf8, printable
from orpo_mlx.config.judging import ChatConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Notice

if TYPE_CHECKING:
    from orpo_mlx.judging.answers import SampledAnswer
    from orpo_mlx.sampling.talk import Talk, Turn
    from orpo_mlx.sampling.voices import Show, Who

HELP = {
    "/adapter": "The adapter answers from now on.",
    "/base": "The base answers from now on.",
    "/both": "Both answer from now on, as 1 and 2 in random order.",
    "/1, /2": "Vote for one of the two answers; the conversation goes on with it.",
    "/edit": "Write a better answer than the last one in your editor, which is a vote for it; "
    "after two answers /edit 1 or /edit 2.",
    "/system TEXT": "Another system message; without TEXT, none.",
    "/new": "Begin a new conversation.",
    "/quit": "End the chat; Ctrl-D too.",
}
COMMANDS = ("/base", "/adapter", "/both", "/1", "/2", "/edit", "/system", "/new", "/help", "/quit")
TO_VOTE = (
    "(/1 or /2: the better one, who answered is then shown; /edit 1 or /edit 2: write a better "
    "one; a message goes on with 1, without a vote)"
)


@config_command("chat", ChatConfig)
def command(config: ChatConfig, output: Output) -> None:
    """Talk with a base and its adapter in the terminal, one line a message.

    /base, /adapter and /both choose who answers. After /both, /1 or /2 votes for an answer before
    it is shown whose it is; /edit votes for a text of your own. Nothing else votes. Votes are kept
    in --output with their answers: orpo-mlx judge FOLDER --result makes preference pairs of them.
    /help lists all commands. Ctrl-C stops an answer, Ctrl-D ends the chat.

    \b
    Example:
      orpo-mlx chat --model ./base --adapter adapters/mine
    """
    from orpo_mlx import backend
    from orpo_mlx.run_folder.lock import locked

    screen = _Screen(output)
    with locked(config.folder, screen.report):
        from orpo_mlx.sampling.chat_votes import ChatVotes

        votes = ChatVotes(config.folder)
        backend.prepare()
        from orpo_mlx.sampling.talk import Talk
        from orpo_mlx.sampling.voices import open_voices

        with redirect_stdout(sys.stderr):
            voices = open_voices(config)
        for text in voices.notices:
            screen.report(Notice(text))
        talk = Talk(
            voices,
            votes,
            seed=config.seed,
            system=config.system or "",
            order=random.SystemRandom(),
        )
        _Chat(talk, screen, config).run()
    facts = {"output": config.folder, "votes": votes.count, "messages": talk.messages}
    output.result(facts, [])


class _Screen:
    """Where the chat is written: what is answered and voted to stdout, or all to stderr."""

    def __init__(self, output: Output):
        self._output = output

    def write(self, text: str, *, end: str = "\n", **style: bool) -> None:
        """A piece of an answer, or what became of a command."""
        shown = printable(text) + end
        shown = click.style(shown, **style) if any(style.values()) else shown
        click.echo(shown, nl=False, err=self._output.as_json)

    def hint(self, text: str) -> None:
        """What can be typed now."""
        if not self._output.quiet:
            click.secho(printable(text), err=True, dim=True)

    def report(self, event: object) -> None:
        """A notice; also what --quiet shows if it is a warning."""
        if isinstance(event, Notice) and (event.warning or not self._output.quiet):
            click.echo(f"{'Warning: ' * event.warning}{printable(event.text)}", err=True)

    def refuse(self, text: str) -> None:
        """Why what was typed was not done."""
        click.echo(printable(text), err=True)


class _Chat:
    """Reads lines, and does what they ask for."""

    def __init__(self, talk: "Talk", screen: _Screen, config: ChatConfig):
        self._talk, self._screen, self._config = talk, screen, config

    def run(self) -> None:
        """The chat, until its input ends or /quit."""
        self._warn("--system", self._talk.system)
        self._screen.hint(f"{self._who_answers()} /help lists the commands, Ctrl-D ends the chat.")
        while (line := self._read()) is not None:
            word, _, rest = line.partition(" ")
            try:
                if not line.startswith("/"):
                    self._ask(line.strip())
                elif word == "/quit":
                    break
                else:
                    self._do(word, rest.strip())
            except KeyboardInterrupt:
                self._screen.write("")
            except (OrpoError, click.ClickException) as error:
                self._screen.refuse(f"Error: {error}")
        if count := self._talk.votes.count:
            folder = self._talk.votes.folder
            self._screen.hint(
                f"{_votes(count)} in {folder}. Preference pairs of them: "
                f"orpo-mlx judge {folder} --result"
            )

    def _read(self) -> str | None:
        """The next line that holds something; None at the end."""
        while True:
            try:
                line = _read_line()
            except EOFError:
                if _is_terminal():
                    self._screen.write("")
                return None
            except KeyboardInterrupt:
                self._screen.hint("\n(Ctrl-D or /quit ends the chat)")
                continue
            except UnicodeDecodeError:
                raise OrpoError("Standard input: not UTF-8 text.") from None
            if line.strip():
                return line

    def _do(self, word: str, rest: str) -> None:
        """Follow a command."""
        if word in ("/base", "/adapter", "/both"):
            self._let_answer(word.removeprefix("/"))
        elif word in ("/1", "/2"):
            self._choose(int(word[1]) - 1)
        elif word == "/edit":
            self._edit(rest)
        elif word == "/system":
            self._talk.system = rest
            self._warn("/system", rest)
            self._screen.hint("The system message is set." if rest else "No system message.")
        elif word == "/new":
            self._talk.begin_again()
            self._screen.hint("A new conversation.")
        elif word == "/help":
            for name, text in HELP.items():
                self._screen.write(f"{name:<14} {text}")
        else:
            self._screen.refuse(
                f"{word}: no such command, and not sent.{nearest(word, COMMANDS)} Commands: "
                f"{' '.join(COMMANDS)}. A message that begins with / is typed after a space."
            )

    def _let_answer(self, mode: Any) -> None:
        if mode != "base" and not self._talk.voices.switch:
            raise OrpoError(f"/{mode}: this chat has no adapter. Give one with --adapter FOLDER.")
        self._talk.mode = mode
        self._screen.hint(self._who_answers())

    def _who_answers(self) -> str:
        if self._talk.mode == "both":
            return "Both answer, as 1 and 2 in random order."
        return f"The {self._talk.mode} answers."

    def _ask(self, text: str) -> None:
        """Send a message, and show what is answered."""
        if not is_utf8(text):
            raise OrpoError("The message: not UTF-8 text.")
        self._warn("The message", text)
        turn = self._talk.ask(text, self._show_next)
        self._end_answer(turn)
        if turn.is_empty:
            self._screen.hint("(stopped before an answer: the message is not sent)")
        elif turn.is_open:
            self._screen.hint(TO_VOTE)
        elif len(turn.answers) == 2:
            self._screen.hint("(both answers are the same: nothing to vote on)")

    def _show_next(self, turn: "Turn", who: "Who") -> "Show":
        if turn.answers:
            self._end_answer(turn)
        label = who if len(turn.speakers) == 1 else str(len(turn.answers) + 1)
        self._screen.write(f"{label}> ", end="", bold=True)
        return lambda piece, is_thought: self._screen.write(piece, end="", dim=is_thought)

    def _end_answer(self, turn: "Turn") -> None:
        """End the line of an answer, with why it is not whole."""
        self._screen.write("")
        if turn.answers[-1].cut:
            limit = self._config.max_tokens
            is_full = turn.answers[-1].tokens >= limit
            self._screen.hint(f"(cut at --max-tokens {limit})" if is_full else "(stopped)")

    def _choose(self, number: int) -> None:
        turn = self._talk.turn
        if not turn or not turn.is_open:
            raise OrpoError(f"/{number + 1}: no two answers to choose from. /both gives two.")
        self._talk.choose(turn, number)
        one, other = turn.speakers[number], turn.speakers[1 - number]
        self._kept(f"{number + 1} was the {one}, {2 - number} the {other}.", turn.answers)

    def _edit(self, which: str) -> None:
        """Let an answer be edited, and vote for the text if it is another."""
        turn = self._talk.turn
        if not turn:
            raise OrpoError("/edit: no answer yet.")
        of = _number_of(turn, which)
        before = turn.edit if turn.edit is not None else turn.answers[of].text
        text = _edited(before).strip()
        if not text or text == before.strip():
            self._screen.hint("(nothing was changed: no vote)")
            return
        self._talk.edit(turn, of, text)
        self._kept("Your text goes on.", [turn.answers[of]])

    def _kept(self, text: str, answers: "list[SampledAnswer]") -> None:
        """Report a vote."""
        votes = self._talk.votes
        self._screen.write(f"{text} Vote {votes.count} kept in {votes.folder}.")
        if any(answer.cut for answer in answers):
            self._screen.hint("(an answer was cut: it makes no pair)")

    def _warn(self, name: str, text: str) -> None:
        """Report what a tokenizer reads otherwise than it was typed."""
        from orpo_mlx.review.answers.generate import typed_warnings

        encoders = [voice.encoder for voice in self._talk.voices.voices.values()]
        warnings = [w for encoder in encoders for w in typed_warnings(encoder, name, text)]
        for warning in dict.fromkeys(warnings):
            self._screen.report(Notice(warning, warning=True))


def _read_line() -> str:
    """A line from a terminal, which can be edited, or from what is piped in; raises EOFError."""
    if sys.stdin is None:
        raise EOFError
    if _is_terminal():
        with suppress(ImportError):
            import readline  # noqa: F401  (`input` then has keys to edit with, and a history)
        return input("you> ")
    if not (line := sys.stdin.readline()):
        raise EOFError
    return line.rstrip("\n")


def _edited(text: str) -> str:
    """A text as the user's editor leaves it, "" if it was not saved."""
    if not _is_terminal() and not any(map(os.environ.get, ("VISUAL", "EDITOR"))):
        raise OrpoError("/edit: no terminal, and no editor is named by $VISUAL or $EDITOR.")
    return click.edit(text, extension=".md") or ""


def _is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _number_of(turn: "Turn", which: str) -> int:
    """Which answer is edited, from 0; raises OrpoError where that is not clear."""
    if len(turn.answers) == 1 and which in ("", "1"):
        return 0
    if turn.is_open and which in ("1", "2"):
        return int(which) - 1
    if turn.chosen is not None and which in ("", str(turn.chosen + 1)):
        return turn.chosen
    raise OrpoError(
        "Which of the two? /edit 1 or /edit 2."
        if turn.is_open
        else "/edit without a number edits the answer with which the conversation goes on."
    )


def _votes(count: int) -> str:
    return f"{count:,} vote{'s' * (count != 1)}"
