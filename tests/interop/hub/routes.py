"""What huggingface_hub sends: routes, fields and headers, each with the source file that shows it.

The fake Hub refuses everything else; a test looks every name up in the installed sources.
"""

import re
from typing import NamedTuple

REPO = r"(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
PREFIXED = r"(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)"


class Route(NamedTuple):
    name: str
    method: str
    path: str  # a pattern over the path as it was sent
    source: str  # file of huggingface_hub
    quote: str  # the route as that file has it
    fields: tuple[str, ...] = ()  # of the JSON body, inner ones too
    query: tuple[str, ...] = ()
    writes: bool = False


ROUTES = [
    Route("whoami", "GET", r"/api/whoami-v2", "hf_api.py", "/api/whoami-v2"),
    Route(
        "create", "POST", r"/api/repos/create", "hf_api.py", "/api/repos/create",
        ("name", "organization", "visibility", "type"), writes=True,
    ),
    Route(
        "validate-yaml", "POST", r"/api/validate-yaml", "hf_api.py", "/api/validate-yaml",
        ("content", "repoType"),
    ),
    Route(
        "info", "GET", rf"/api/{REPO}(/revision/(?P<revision>[^/]+))?", "hf_api.py",
        "/api/models/{repo_id}/revision/", query=("securityStatus", "blobs", "expand"),
    ),
    Route(
        "tree", "GET", rf"/api/{REPO}/tree/(?P<revision>[^/]+)", "hf_api.py",
        "/tree/{revision}", query=("recursive", "expand"),
    ),
    Route("refs", "GET", rf"/api/{REPO}/refs", "hf_api.py", "/refs", query=("include_prs",)),
    Route(
        "branch", "POST", rf"/api/{REPO}/branch/(?P<branch>[^/]+)", "hf_api.py",
        "/branch/{branch}", ("startingPoint",), writes=True,
    ),
    Route(
        "tag", "POST", rf"/api/{REPO}/tag/(?P<revision>[^/]+)", "hf_api.py", "/tag/{revision}",
        ("tag", "message"), writes=True,
    ),
    Route(
        "preupload", "POST", rf"/api/{REPO}/preupload/(?P<revision>[^/]+)", "_commit_api.py",
        "/preupload/{revision}", ("files", "path", "sample", "size", "gitIgnore"), ("create_pr",),
        writes=True,
    ),
    Route(
        "commit", "POST", rf"/api/{REPO}/commit/(?P<revision>[^/]+)", "_commit_api.py",
        "/commit/{revision}",
        ("key", "value", "header", "summary", "description", "parentCommit", "file", "content",
         "path", "encoding", "lfsFile", "algo", "oid", "size", "deletedFile", "deletedFolder"),
        ("create_pr", "hot_reload"), writes=True,
    ),
    Route(
        "batch", "POST", rf"/{PREFIXED}\.git/info/lfs/objects/batch", "lfs.py",
        ".git/info/lfs/objects/batch",
        ("operation", "transfers", "objects", "oid", "size", "hash_algo", "ref", "name"),
        writes=True,
    ),
    # What follows has addresses that the server chose.
    Route("put", "PUT", r"/storage/(?P<oid>[0-9a-f]{64})", "lfs.py", '"PUT", upload_url'),
    Route(
        "put-part", "PUT", r"/storage/(?P<oid>[0-9a-f]{64})/(?P<part>\d+)", "lfs.py",
        '"PUT", part_upload_url',
    ),
    Route(
        "complete", "POST", r"/complete/(?P<oid>[0-9a-f]{64})", "lfs.py", "completion_res",
        ("oid", "parts", "partNumber", "etag"),
    ),
    Route(
        "verify", "POST", r"/verify/(?P<oid>[0-9a-f]{64})", "lfs.py", "verify_url",
        ("oid", "size"), writes=True,
    ),
    Route(
        "head", "HEAD", rf"/{PREFIXED}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "constants.py",
        "/resolve/{revision}/{filename}",
    ),
    Route(
        "get", "GET", rf"/{PREFIXED}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "constants.py",
        "/resolve/{revision}/{filename}",
    ),
]  # fmt: skip

# Header -> the file of huggingface_hub that names it; "" for what its HTTP client adds by itself.
HEADERS = {
    "authorization": "utils/_headers.py",
    "user-agent": "utils/_headers.py",
    "x-amzn-trace-id": "utils/_http.py",
    "x-hf-download-counter": "constants.py",
    "range": "file_download.py",
    "accept-encoding": "file_download.py",
    "accept": "lfs.py",
    "content-type": "lfs.py",
    "host": "",
    "connection": "",
    "content-length": "",
    "transfer-encoding": "",
}


def find_route(method: str, path: str) -> tuple[Route, dict[str, str]] | None:
    """The route of a request, and the parts of its path."""
    for route in ROUTES:
        if route.method == method and (match := re.fullmatch(route.path, path)):
            return route, {k: v for k, v in match.groupdict().items() if v is not None}
    return None


def unknown_fields(route: Route, body: object) -> set[str]:
    """The keys of a body, at any depth, that the route does not have."""
    if isinstance(body, dict):
        inner = (unknown_fields(route, value) for value in body.values())
        return (set(body) - set(route.fields)).union(*inner)
    if isinstance(body, list):
        return set().union(*(unknown_fields(route, item) for item in body))
    return set()
