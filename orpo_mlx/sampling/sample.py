"""The whole of `orpo-mlx sample`: prompts and sources to one file of answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from orpo_mlx.config.judging import SampleConfig
from orpo_mlx.data.tokens.encoder import Encoder
from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.events import Callback, Notice, Progress
from orpo_mlx.files import check_writable, remove, replacing
from orpo_mlx.judging.answers import (
    AnswerSource,
    SampledAnswer,
    answer_id,
    answer_message,
    append_answers,
    load_answers,
)
from orpo_mlx.loading import build_encoder, check_prompt_ids, open_base, with_tokenizer_of
from orpo_mlx.model.adapters import AdapterSwitch, read_adapter
from orpo_mlx.model.base import Base
from orpo_mlx.review.pairs.read_sources import refuse_existing
from orpo_mlx.sampling.batches import (
    Draw,
    Drawing,
    Drawn,
    draw_in_batches,
    draw_one_by_one,
)
from orpo_mlx.sampling.cut import DrawAll, GoneOn, let_go_on
from orpo_mlx.sampling.keys import answer_seed
from orpo_mlx.sampling.prompts import AskedPrompt, load_prompts
from orpo_mlx.sampling.resume import check_same
from orpo_mlx.sampling.scoring import Scorer
from orpo_mlx.sampling.sources import Answerer, answerers_of
from orpo_mlx.sampling.start_check import why_not_in_batches
from orpo_mlx.sampling.texts import decode, opens_thought, split_answer


class SamplingStopped(KeyboardInterrupt):
    """Ctrl-C; the answers of complete prompts are in the file, with which --resume goes on."""

    def __init__(self, answers: int):
        super().__init__()
        self.answers = answers


class SourceResult(NamedTuple):
    """The answers of one source."""

    source: AnswerSource
    answers: list[SampledAnswer]  # by prompt and number
    gone_on: GoneOn | None  # None: no answer was cut in this run, or none was to go on


class Sampled(NamedTuple):
    """All answers of a file."""

    output: Path
    prompts: int
    sources: list[SourceResult]


class Wanted(NamedTuple):
    """A prompt, its ids for one source, and the numbers of the answers that are missing."""

    prompt: AskedPrompt
    ids: list[int]
    numbers: list[int]


class Prepared(NamedTuple):
    """A source that is ready to answer: the base with its tokenizer, and what is wanted of it."""

    answerer: Answerer
    base: Base
    encoder: Encoder
    wanted: list[Wanted]


def sample(
    config: SampleConfig, report: Callback = lambda event: None, *, follow_cut: bool = True
) -> Sampled:
    """Let every source answer every prompt, and write the answers to --output.

    They are appended as prompts are complete. `follow_cut`: some that were cut go on, unwritten,
    to learn which limit would be enough. Raises OrpoError for settings that cannot be used, and
    SamplingStopped for Ctrl-C.
    """
    check_answers_file(config)
    prompts = load_prompts(config, report)
    kept = load_answers(config.output) if config.resume and config.output.exists() else []
    answerers = answerers_of(config, kept)
    check_same(config, kept, answerers, prompts)
    run = _Run(config, prompts, kept, report, follow_cut)
    try:
        gone_on = run.answer_all(answerers)
    except KeyboardInterrupt as stop:
        raise SamplingStopped(len(kept) + run.written) from stop
    rows = _put_in_order(config.output, prompts, answerers)
    results = [
        SourceResult(
            answerer.source,
            [row for row in rows if row.source == answerer.source],
            gone_on.get(answerer.source.name),
        )
        for answerer in answerers
    ]
    return Sampled(config.output, len(prompts), results)


def check_answers_file(config: SampleConfig) -> None:
    """Raise OrpoError for a file that is in the way, or cannot be written."""
    output = config.output
    if output.exists() and not output.is_dir() and not (config.overwrite or config.resume):
        raise OrpoError(
            f"--output {output} exists. Go on with it with --resume, replace it with --overwrite, "
            "or name another file."
        )
    refuse_existing([output], "--output", overwrite=True, sources=config.prompts)
    check_writable(output.parent, output)


class _Run:
    """What all sources share: prompts, what is answered already, and the file."""

    def __init__(
        self,
        config: SampleConfig,
        prompts: Sequence[AskedPrompt],
        kept: Sequence[SampledAnswer],
        report: Callback,
        follow_cut: bool,
    ):
        self._config, self._prompts, self._report = config, prompts, report
        self._follow_cut = follow_cut
        self._kept = {row.id for row in kept}
        self._replaces = config.overwrite and config.output.exists()
        self._draw: DrawAll | None = None  # chosen once
        self.written = 0  # answers

    def answer_all(self, answerers: Sequence[Answerer]) -> dict[str, GoneOn]:
        """Draw what is missing of each source; returns what became of cut answers, by source."""
        missing = [answerer for answerer in answerers if any(self._numbers(answerer.source))]
        if not missing:
            return {}
        base = open_base(self._config, missing[0].folder)
        for text in base.notices:
            self._report(Notice(text))
        # All before the first answer: what is wrong with the last adapter costs no hours.
        own = [base, *(with_tokenizer_of(base, self._config, a.folder) for a in missing[1:])]
        prepared = [self._prepare(*pair) for pair in zip(own, missing, strict=True)]
        results = ((one.answerer.source.name, self._answer(one)) for one in prepared)
        return {name: gone_on for name, gone_on in results if gone_on is not None}

    def _numbers(self, source: AnswerSource) -> Iterator[list[int]]:
        """The numbers of the answers that are missing, of each prompt."""
        seed = self._config.seed
        for prompt in self._prompts:
            numbers = range(self._config.answers)
            ids = (answer_id(prompt.hash, source, seed, number) for number in numbers)
            yield [n for n, id in zip(numbers, ids, strict=True) if id not in self._kept]

    def _prepare(self, base: Base, answerer: Answerer) -> Prepared:
        """What a source is asked, by its own tokenizer; its adapter is tried on the base."""
        with _adapter_on(base, answerer.folder):
            pass
        encoder = build_encoder(base, answerer.template, answerer.source.thinking)
        numbers = self._numbers(answerer.source)
        missing = [(p, n) for p, n in zip(self._prompts, numbers, strict=True) if n]
        ids = _prompt_ids(base, encoder, [prompt for prompt, _ in missing])
        wanted = [Wanted(p, i, n) for (p, n), i in zip(missing, ids, strict=True)]
        return Prepared(answerer, base, encoder, wanted)

    def _answer(self, prepared: Prepared) -> GoneOn | None:
        """Draw and write the answers of one source; returns what became of those that were cut."""
        (answerer, base, encoder, wanted), config = prepared, self._config
        how = Drawing(
            base.model, base.tokenizer, config.temperature, config.max_tokens, config.batch_size
        )
        with _adapter_on(base, answerer.folder):
            draw = self._draw = self._draw or _choose(how, wanted, self._report)
            cut = self._draw_and_write(how, draw, wanted, encoder, answerer.source)
            return let_go_on(how, draw, cut, self._report) if cut and self._follow_cut else None

    def _draw_and_write(
        self,
        how: Drawing,
        draw: DrawAll,
        wanted: Sequence[Wanted],
        encoder: Encoder,
        source: AnswerSource,
    ) -> list[Draw]:
        """Append the answers of each prompt once they are complete; returns those cut, to go on."""
        seed, scorer = self._config.seed, Scorer(how.model, encoder)
        owners = [(w, number) for w in wanted for number in w.numbers]
        draws = [Draw(w.ids, answer_seed(seed, w.prompt.hash, number)) for w, number in owners]
        drawn = dict[int, dict[int, Drawn]]()
        cut, stage = list[Draw](), f"Answers of {source.name}"
        self._report(Progress(stage, 0, len(draws)))
        for done, (index, one) in enumerate(draw(how, draws), 1):
            own, number = owners[index]
            answers = drawn.setdefault(id(own), {})
            answers[number] = one
            if not one.ended:
                cut.append(Draw(own.ids + one.ids, draws[index].seed, len(one.ids)))
            if len(answers) == len(own.numbers):
                del drawn[id(own)]
                self._append(_rows(own, answers, source, seed, encoder, scorer))
            self._report(Progress(stage, done, len(draws)))
        return cut

    def _append(self, rows: Sequence[SampledAnswer]) -> None:
        if self._replaces:
            remove(self._config.output)
            self._replaces = False
        append_answers(self._config.output, rows)
        self.written += len(rows)


@contextmanager
def _adapter_on(base: Base, folder: Path | None) -> Iterator[None]:
    """The base has the adapter of a folder, if there is one, while the block runs."""
    if folder is None:
        yield
        return
    switch = AdapterSwitch(base.model, read_adapter(folder))
    try:
        yield
    finally:
        switch.set(False)


def _prompt_ids(base: Base, encoder: Encoder, prompts: Sequence[AskedPrompt]) -> list[list[int]]:
    """What the model is given of each prompt, whole; raises OrpoError for all that it cannot."""
    ids, faults = list[list[int]](), list[str]()
    for prompt in prompts:
        try:
            ids.append(encoder.prompt_ids(prompt.messages, prompt.tools))
        except OrpoError as error:
            faults.append(f"{prompt.location}: {error}")
    if faults:
        raise collected("--prompts: these cannot be asked:", faults)
    check_prompt_ids(base.model, encoder.tokenizer, sorted({i for one in ids for i in one}))
    return ids


def _choose(how: Drawing, wanted: Sequence[Wanted], report: Callback) -> DrawAll:
    """Batches, if this model computes the same in them as mlx-lm does one by one."""
    if how.batch_size == 1 or sum(len(one.numbers) for one in wanted) == 1:
        return draw_one_by_one
    why = why_not_in_batches(how.model, how.tokenizer, [one.ids for one in wanted])
    if not why:
        return draw_in_batches
    report(Notice(f"Answers are drawn one by one: this model is not exact in batches ({why})."))
    return draw_one_by_one


def _rows(
    wanted: Wanted,
    drawn: dict[int, Drawn],
    source: AnswerSource,
    seed: int,
    encoder: Encoder,
    scorer: Scorer,
) -> list[SampledAnswer]:
    """The rows of one prompt, by number."""
    prompt, opened = wanted.prompt, opens_thought(encoder.tokenizer, wanted.ids)
    rows = []
    for number, one in sorted(drawn.items()):
        tokens = one.ids[: len(one.ids) - one.ended]
        parts = split_answer(decode(encoder.tokenizer, tokens), opened=opened, ended=one.ended)
        logp = None
        if parts.finish == "stop":
            message = answer_message(parts.text, parts.thought)
            logp = scorer.score(prompt, wanted.ids, message, one)
        rows.append(
            SampledAnswer(
                id=answer_id(prompt.hash, source, seed, number),
                prompt=prompt.prompt,
                tools=prompt.tools,
                group=prompt.group,
                source=source,
                number=number,
                seed=seed,
                thought=parts.thought,
                text=parts.text,
                finish=parts.finish,
                tokens=len(tokens),
                logp=None if logp is None else round(logp, 6),
            )
        )
    return rows


def _put_in_order(
    output: Path, prompts: Sequence[AskedPrompt], answerers: Sequence[Answerer]
) -> list[SampledAnswer]:
    """The rows of the file by prompt, source and number, in which it is written if it is not."""
    rows = load_answers(output)
    by_prompt = {f"{prompt.hash:016x}": number for number, prompt in enumerate(prompts)}
    by_source = {answerer.source.name: number for number, answerer in enumerate(answerers)}

    def position(row: SampledAnswer) -> tuple[int, int, int]:
        return by_prompt[row.prompt_id], by_source[row.source.name], row.number

    ordered = list({position(row): row for row in sorted(rows, key=position)}.values())
    if ordered != rows:
        with replacing(output) as new:
            append_answers(new, ordered)
    return ordered
