"""The local page on which answers are judged: markup, safety, HTTP, the page itself."""
