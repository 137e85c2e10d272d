"""The page's routes: what a judge sees next, votes, the end. Nothing sent depends on who answered.

Who may ask is decided before (security.py).
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orpo_mlx.data.pairs.message_parts.content import is_invisible, text_in
from orpo_mlx.data.pairs.messages import Message
from orpo_mlx.errors import OrpoError
from orpo_mlx.judging.answers import SampledAnswer
from orpo_mlx.judging.outcome import SessionOutcome
from orpo_mlx.judging.server.markup import render_code, render_markdown
from orpo_mlx.judging.session import Session, ShownItem
from orpo_mlx.judging.votes import Choice, EditedAnswer, judge_name

STATIC = Path(__file__).parent / "static"
KINDS = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}


def _name(text: str) -> str:
    """A judge's name; raises ValueError, which pydantic collects, for one that cannot be kept."""
    try:
        return judge_name(text)
    except OrpoError as error:
        raise ValueError(str(error)) from None


def _text(text: str) -> str:
    """The text of an edit; raises ValueError if there is nothing in it."""
    if is_invisible(text):
        raise ValueError("An edit must have a text.")
    return text


class _Body(BaseModel):
    """What the page sends."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    judge: Annotated[str, AfterValidator(_name)]


class _Edit(BaseModel):
    of: Literal["first", "second"]
    text: Annotated[str, AfterValidator(_text)]


class _VoteBody(_Body):
    vote: str = Field(min_length=1, max_length=64)
    item: str
    choice: Choice
    edit: _Edit | None = None
    note: str = Field("", max_length=10_000)


class _UndoBody(_Body):
    undo: str = Field("", max_length=64)


B = TypeVar("B", bound=_Body)


class JudgingPage:
    """What the page shows of a session, and the result, which it waits for after the end."""

    def __init__(self, session: Session, judge: str, notes: Sequence[str] = ()):
        self.over = Event()  # nobody judges any more
        self.fetched = Event()  # the result was sent
        self._session, self._judge, self._notes = session, judge, list(notes)
        self._result: dict[str, Any] | None = None

    def show_result(self, outcome: SessionOutcome) -> None:
        """Let the page show what the session came to."""
        files = [str(file) for file in outcome.files]
        self._result = {"sentences": outcome.sentences, "files": files, "failed": False}

    def show_failure(self, error: OrpoError) -> None:
        """Let the page show why there is no result."""
        self._result = {"sentences": [str(error)], "files": [], "failed": True}

    def start(self) -> dict[str, Any]:
        """What is shown before the first item."""
        guidelines = self._session.guidelines
        return {
            "purpose": self._session.purpose,
            "folder": str(self._session.folder),
            "judge": self._judge,
            "judges": self._session.judges(),
            "notes": self._notes,
            "guidelines_html": render_markdown(guidelines) if guidelines.strip() else "",
        }

    def state(self, judge: str) -> dict[str, Any]:
        """What a judge sees now."""
        item = None if self.over.is_set() else self._session.next_item(judge)
        done, total = self._session.progress(judge)
        phase = "ended" if self.over.is_set() else "item" if item else "done"
        return {
            "phase": phase,
            "item": item and _item_as_json(item),
            "done": done,
            "total": total,
            "can_undo": done > 0 and phase != "ended",
            "result": self._result,
        }

    def vote(self, body: _VoteBody) -> None:
        """Keep a vote; after the end it changes nothing."""
        if self.over.is_set():
            return
        item = self._session.shown(body.item)
        edit = None
        if body.edit:
            edited = item.first if body.edit.of == "first" else item.second
            edit = EditedAnswer(of=edited.id, text=body.edit.text)
        self._session.vote(
            body.judge, body.vote, body.item, body.choice, edit=edit, note=body.note.strip()
        )

    def undo(self, body: _UndoBody) -> None:
        """Take a judge's last vote back; after the end it changes nothing."""
        if not self.over.is_set():
            self._session.undo(body.judge, body.undo)

    def end(self, body: _Body) -> None:
        """Nobody judges any more."""
        self._session.end()
        self.over.set()


def build_app(page: JudgingPage) -> Starlette:
    """The routes of a page."""

    async def start(request: Request) -> Response:
        return JSONResponse(page.start())

    async def item(request: Request) -> Response:
        return _answer(lambda: _state(page, request.query_params.get("judge", "")))

    def post(path: str, kind: type[B], act: Callable[[B], None]) -> Route:
        async def endpoint(request: Request) -> Response:
            content = await request.body()
            return _answer(lambda: _act(page, kind.model_validate_json(content), act))

        return Route(path, endpoint, methods=["POST"])

    return Starlette(
        routes=[
            *map(_file_route, sorted(STATIC.iterdir())),
            Route("/api/start", start, methods=["GET"]),
            Route("/api/item", item, methods=["GET"]),
            post("/api/vote", _VoteBody, page.vote),
            post("/api/undo", _UndoBody, page.undo),
            post("/api/end", _Body, page.end),
        ]
    )


def _state(page: JudgingPage, judge: str) -> Response:
    state = page.state(_Body(judge=judge).judge)
    sent = BackgroundTask(page.fetched.set) if state["result"] else None
    return JSONResponse(state, background=sent)


def _act(page: JudgingPage, body: B, act: Callable[[B], None]) -> Response:
    act(body)
    return _state(page, body.judge)


def _answer(respond: Callable[[], Response]) -> Response:
    """What `respond` answers; 400 for what no page of ours sends, 503 where nothing was kept."""
    try:
        return respond()
    except ValidationError as error:
        return _refusal(_faults(error), 400)
    except KeyError:
        return _refusal("There is no such item in this session.", 400)
    except OrpoError as error:
        return _refusal(str(error), 503)


def _faults(error: ValidationError) -> str:
    """What is wrong with a body, for people where we have a sentence for it."""
    faults = error.errors()
    if sentences := [str(f["ctx"]["error"]) for f in faults if f["type"] == "value_error"]:
        return " ".join(sentences)
    fields = {".".join(map(str, fault["loc"])) or "the body" for fault in faults}
    return f"This cannot be read: {', '.join(sorted(fields))}."


def _refusal(text: str, status: int) -> Response:
    return JSONResponse({"error": text}, status)


def _file_route(file: Path) -> Route:
    """The page is at /, what it loads next to it."""
    content, kind = file.read_bytes(), KINDS[file.suffix]

    async def endpoint(request: Request) -> Response:
        return Response(content, media_type=kind)

    path = "/" if file.name == "page.html" else f"/{file.name}"
    return Route(path, endpoint, methods=["GET"])


def _item_as_json(item: ShownItem) -> dict[str, Any]:
    """Of the answers thought, text and cut alone: all else would show who answered."""
    prompt = [_message_as_json(message) for message in item.messages]
    if item.tools:
        prompt.insert(0, {"role": "tools", "html": _json_block(item.tools)})
    answers = [_answer_as_json(answer) for answer in (item.first, item.second)]
    return {"id": item.id, "prompt": prompt, "answers": answers}


def _message_as_json(message: Message) -> dict[str, str]:
    html = render_markdown(text_in(message.get("content")))
    if calls := message.get("tool_calls"):
        html += _json_block(calls)
    return {"role": str(message.get("role", "user")), "html": html}


def _json_block(value: Any) -> str:
    return render_code(json.dumps(value, ensure_ascii=False, indent=2), "json")


def _answer_as_json(answer: SampledAnswer) -> dict[str, Any]:
    return {
        "html": render_markdown(answer.text),
        "thought_html": render_markdown(answer.thought) if answer.thought.strip() else "",
        "text": answer.text,
        "cut": answer.cut,
    }
