"""What a browser does at the page that is served: follows the link, asks, votes."""

from typing import Any
from urllib.parse import urlsplit

import httpx2

from tests.alarm import HANG_SECONDS


class Visitor:
    """A judge whose requests are those of the page."""

    def __init__(self, link: str, judge: str = "ann"):
        parts = urlsplit(link)
        self.judge, self.votes = judge, 0
        self.client = httpx2.Client(
            base_url=f"{parts.scheme}://{parts.netloc}",
            timeout=HANG_SECONDS,
            trust_env=False,
            headers={"Origin": f"{parts.scheme}://{parts.netloc}"},
        )
        assert self.client.get(f"/?{parts.query}").status_code == 303

    def state(self) -> dict[str, Any]:
        return dict(self.client.get("/api/item", params={"judge": self.judge}).json())

    def post(self, action: str, **body: Any) -> dict[str, Any]:
        response = self.client.post(f"/api/{action}", json={"judge": self.judge} | body)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def vote(self, item: str, choice: str, **body: Any) -> dict[str, Any]:
        self.votes += 1
        vote = f"{self.judge}-{self.votes}-{item}"
        return self.post("vote", vote=vote, item=item, choice=choice, **body)

    def vote_all(self, choice: str = "first") -> int:
        """Vote on all that is left; how often."""
        state = self.state()
        while state["item"]:
            state = self.vote(state["item"]["id"], choice)
        return self.votes

    def end(self) -> dict[str, Any]:
        """End the session; the result, once it is there."""
        state = self.post("end")
        while not state["result"]:
            state = self.state()
        self.client.close()
        return dict(state["result"])
