"""Push an adapter, a model or pairs to the Hub: what goes there, and the one commit that it is."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, RepoCard

from orpo_mlx.config.interop import PushConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import size_text, temporary_folder
from orpo_mlx.hub_errors import hub_errors
from orpo_mlx.interop.hub.bundle import MLX_FOLDER, Bundle, pack
from orpo_mlx.interop.hub.card import CURVES
from orpo_mlx.interop.hub.client import (
    Account,
    check_repo_name,
    forward_hub_logs,
    log_in,
    repo_info,
    with_retries,
)
from orpo_mlx.interop.hub.uploads import PEFT_WEIGHTS, RUN_PARTS, WEIGHTS, Upload
from orpo_mlx.model.safetensors import INDEX

MAIN = "main"


class PushResult(NamedTuple):
    """What was pushed, or would be: `commit` and `url` are empty after a dry run."""

    repo: str
    kind: str
    private: bool
    revision: str
    files: list[tuple[str, int]]  # with their bytes
    removed: list[str]  # files of an earlier push that this one has not
    card: str
    commit: str = ""
    url: str = ""
    user: str = ""

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size in self.files)


class _Target(NamedTuple):
    """The repo as it is before the commit."""

    private: bool
    files: frozenset[str]  # on the branch


def push(
    config: PushConfig, report: Callback = lambda event: None, *, bars: bool = False
) -> PushResult:
    """Push what the settings name, in one commit; with `dry_run`, return what would be pushed.

    `bars` shows the library's own bars. Raises OrpoError for what cannot be pushed, or where the
    Hub refuses it; what was uploaded by then is not sent again.
    """
    check_repo_name(config.repo, "--repo")
    with temporary_folder(report) as temporary:
        bundle = pack(config, temporary, report)
        if config.dry_run:
            return _result(config, bundle, private=not config.public)
        with forward_hub_logs(report, bars=bars):
            account = log_in(report)
            report(Notice(f"Logged in as {account.name}."))
            return _send(config, bundle, account, report)


def _send(config: PushConfig, bundle: Bundle, account: Account, report: Callback) -> PushResult:
    _check_card(bundle, report)
    target = _open_repo(config, bundle, account, report)
    removed = _stale(target.files, bundle)
    result = _result(config, bundle, private=target.private, removed=removed)
    seen_by = "private" if target.private else "public: everybody can read it"
    report(
        Notice(
            f"Pushing {len(bundle.uploads)} files, {size_text(result.size_bytes)}, to "
            f"{config.repo} ({seen_by}), branch {result.revision}."
        )
    )
    if removed:
        report(Notice(f"Removed there, from an earlier push: {', '.join(removed)}."))
    commit = _commit(config, bundle, removed, account, report)
    if config.tag:
        _tag(config, bundle, commit.oid, account, report)
    return result._replace(commit=commit.oid, url=commit.commit_url, user=account.name)


def _check_card(bundle: Bundle, report: Callback) -> None:
    """Ask the Hub what it thinks of the card, before anything is made or sent."""
    with hub_errors("accept the card, README.md"):
        card = RepoCard(bundle.card.decode())
        with_retries(lambda: card.validate(repo_type=bundle.repo_type), report)


def _open_repo(config: PushConfig, bundle: Bundle, account: Account, report: Callback) -> _Target:
    """The repo, made if it is not there, with its branch; reports what it does."""
    api, kind, repo = account.api, bundle.repo_type, config.repo
    info = repo_info(api, repo, kind, report)
    if info is None:
        private = not config.public
        report(
            Notice(
                f"Creating {repo} as a {'private' if private else 'public'} {kind} repo"
                + (" (--public lets everybody read it)." if private else ".")
            )
        )
        with hub_errors(f"make the {kind} repo", repo, account.name):
            with_retries(
                lambda: api.create_repo(repo, repo_type=kind, private=private, exist_ok=True),
                report,
            )
        info = repo_info(api, repo, kind, report)
        if info is None:
            raise OrpoError(f"{repo} was created, but the Hub does not show it. Try again.")
    else:
        report(Notice(f"{repo} already exists."))
    _check_visibility(config, bool(info.private))
    if config.revision and config.revision != MAIN:
        info = _branch(config, kind, account, report)
    files = frozenset(sibling.rfilename for sibling in info.siblings or [])
    _check_kind(repo, bundle, files)
    if config.tag:
        _check_tag(config, kind, account, report)
    return _Target(bool(info.private), files)


def _check_visibility(config: PushConfig, private: bool) -> None:
    """Raise OrpoError where others would see what the user did not call public."""
    if private and config.public:
        raise OrpoError(
            f"{config.repo} already exists and is private. Change that in its settings on the Hub, "
            "or leave out --public."
        )
    if not private and not config.public:
        raise OrpoError(
            f"{config.repo} is public: everybody would see what is pushed. Confirm with --public, "
            "or name another repo."
        )


def _branch(config: PushConfig, kind: str, account: Account, report: Callback) -> Any:
    """What is on the branch, which is made from main if it is not there."""
    api, repo, branch = account.api, config.repo, str(config.revision)
    info = repo_info(api, repo, kind, report, branch)
    if info is None:
        report(Notice(f"Creating branch {branch} from {MAIN}."))
        with hub_errors(f"make the branch {branch} in", repo, account.name):
            with_retries(
                lambda: api.create_branch(repo, branch=branch, repo_type=kind, exist_ok=True),
                report,
            )
        info = repo_info(api, repo, kind, report, branch)
    if info is None:
        raise OrpoError(f"The Hub does not show the branch {branch} of {repo}. Try again.")
    return info


def _check_kind(repo: str, bundle: Bundle, files: frozenset[str]) -> None:
    """Raise OrpoError where an adapter would be mixed with a model's weights, or the reverse."""
    held = "a model" if any(_is_model_part(f) for f in files) else ""
    held = held or ("an adapter" if {WEIGHTS, PEFT_WEIGHTS} & files else "")
    pushed = {"model": "a model", "adapter": "an adapter"}.get(bundle.what, "")
    if held and pushed and held != pushed:
        raise OrpoError(f"{repo} holds {held}, not {pushed}. Name another repo.")


def _check_tag(config: PushConfig, kind: str, account: Account, report: Callback) -> None:
    with hub_errors("list the tags of", config.repo, account.name):
        refs = with_retries(lambda: account.api.list_repo_refs(config.repo, repo_type=kind), report)
    if config.tag in {ref.name for ref in refs.tags}:
        raise OrpoError(f"{config.repo} has a tag {config.tag} already. Name another with --tag.")


def _stale(there: frozenset[str], bundle: Bundle) -> list[str]:
    """Files that an earlier push of this kind left, and that would now be wrong."""
    now = {upload.path for upload in bundle.uploads}
    if bundle.what == "model":
        return sorted(f for f in there - now if _is_model_part(f) or f == INDEX)
    if bundle.what == "adapter":
        ours = {WEIGHTS, PEFT_WEIGHTS, CURVES, *RUN_PARTS}
        return sorted(f for f in there - now if f.removeprefix(f"{MLX_FOLDER}/") in ours)
    return []


def _is_model_part(path: str) -> bool:
    return path.startswith("model") and path.endswith(".safetensors")


def _commit(
    config: PushConfig, bundle: Bundle, removed: Sequence[str], account: Account, report: Callback
) -> Any:
    """Upload what the Hub has not, then one commit of all."""
    api, kind, repo = account.api, bundle.repo_type, config.repo
    branch = config.revision or MAIN
    hashed: dict[str, Any] = {}

    def additions() -> list[CommitOperationAdd]:
        # New ones each time: the Hub is then asked what it has, and a commit whose answer was
        # lost is not made twice. What has been hashed is not hashed again.
        made = [_addition(upload) for upload in bundle.uploads]
        for operation in made:
            operation.upload_info = hashed.setdefault(operation.path_in_repo, operation.upload_info)
        return made

    def commit(added: list[CommitOperationAdd]) -> Any:
        return api.create_commit(
            repo,
            [*added, *(CommitOperationDelete(path) for path in removed)],
            commit_message=config.message or bundle.message,
            repo_type=kind,
            revision=branch,
        )

    with hub_errors("take what is pushed to", repo, account.name):
        first = additions()
        api.preupload_lfs_files(repo, first, repo_type=kind, revision=branch, free_memory=False)
        ready = [first]
        return with_retries(lambda: commit(ready.pop() if ready else additions()), report)


def _addition(upload: Upload) -> CommitOperationAdd:
    source = upload.source
    return CommitOperationAdd(upload.path, source if isinstance(source, bytes) else str(source))


def _tag(
    config: PushConfig, bundle: Bundle, commit: str, account: Account, report: Callback
) -> None:
    with hub_errors(f"put the tag {config.tag} on the commit in", config.repo, account.name):
        with_retries(
            lambda: account.api.create_tag(
                config.repo, tag=str(config.tag), revision=commit, repo_type=bundle.repo_type
            ),
            report,
        )
    report(Notice(f"Tagged {config.tag}."))


def _result(
    config: PushConfig, bundle: Bundle, *, private: bool, removed: Sequence[str] = ()
) -> PushResult:
    files = [(upload.path, upload.size_bytes) for upload in bundle.uploads]
    return PushResult(
        config.repo,
        bundle.what,
        private,
        config.revision or MAIN,
        files,
        list(removed),
        bundle.card.decode(),
    )
