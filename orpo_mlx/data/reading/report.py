"""What happens to rows on their way to pairs and token ids, counted by reason."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple


class Problem(NamedTuple):
    """What is wrong with a row, for the person who made it."""

    location: str
    fault: str

    def __str__(self) -> str:
        return f"{self.location}: {self.fault}"


@dataclass
class ReadReport:
    """What happened to the rows of one source, or of several added up.

    Rows that are read but make no pair, and pairs of which no token is left, are always left out;
    rows that cannot be read and pairs that cannot be rendered or written as tokens are errors,
    unless `drop_bad` counts them as left out.
    """

    source: str = ""
    read_as: str = ""
    pairs: int = 0
    kept: int = 0  # pairs with token ids
    rows_left_out: Counter[str] = field(default_factory=Counter)  # answers in them, too
    pairs_left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)  # what was cut or changed
    first: dict[str, str] = field(default_factory=dict)  # of some notes, the first location
    reasoned: int = 0  # responses that hold reasoning
    problems: list[Problem] = field(default_factory=list)  # rows that cannot be read
    refused: list[str] = field(default_factory=list)  # pairs that the template cannot render
    unwritten: list[str] = field(default_factory=list)  # pairs mostly without tokens
    faults: list[str] = field(default_factory=list)  # sources that cannot be read

    @property
    def bad(self) -> bool:
        """Whether there are rows that cannot be used."""
        return bool(self.problems or self.refused or self.unwritten)

    def leave_out(self, reason: str, count: int = 1) -> None:
        """Count rows or answers that make no pair."""
        self.rows_left_out[reason] += count

    def leave_out_pair(self, reason: str) -> None:
        """Count a pair of which no token is left."""
        self.pairs_left_out[reason] += 1

    def note(self, what: str, location: str) -> None:
        """Count what was changed or not read, and keep where it was first."""
        self.notes[what] += 1
        self.first.setdefault(what, location)

    def refuse(self, location: str, *faults: str) -> None:
        """Keep what is wrong with a row."""
        self.problems.extend(Problem(location, fault) for fault in faults)

    def add(self, other: "ReadReport") -> None:
        """Count what happened to other rows, too."""
        self.pairs += other.pairs
        self.kept += other.kept
        self.rows_left_out.update(other.rows_left_out)
        self.pairs_left_out.update(other.pairs_left_out)
        self.notes.update(other.notes)
        self.first = other.first | self.first
        self.reasoned += other.reasoned
        self.problems += other.problems
        self.refused += other.refused
        self.unwritten += other.unwritten
        self.faults += other.faults

    def drop_bad(self) -> None:
        """Count rows that cannot be read, each by its first fault, or rendered as left out."""
        first_faults = dict(reversed(self.problems))
        for fault in first_faults.values():
            kind = re.split(r" \(|: ", fault, maxsplit=1)[0]
            self.leave_out("bad row: " + re.sub(r"\[\d+\]", "", kind))
        if self.refused:
            self.leave_out("row that the chat template cannot render", len(self.refused))
        if self.unwritten:
            self.leave_out("row that the tokenizer has few tokens for", len(self.unwritten))
        self.problems, self.refused, self.unwritten = [], [], []

    def reasons(self) -> str:
        """Why rows make no pair, the most frequent first."""
        return "; ".join(f"{count:,} x {why}" for why, count in self.rows_left_out.most_common())

    def counts(self) -> list[tuple[int, str]]:
        """How often and what, most frequent first; what was left out before what was changed."""
        rows = [(n, f"row left out: {why}") for why, n in self.rows_left_out.most_common()]
        pairs = [(n, f"pair left out: {why}") for why, n in self.pairs_left_out.most_common()]
        return rows + pairs + [(n, what) for what, n in self.located_notes().most_common()]

    def located_notes(self) -> Counter[str]:
        """Notes, those with a first location followed by it."""
        return Counter(
            {
                f"{what} (first: {self.first[what]})" if what in self.first else what: count
                for what, count in self.notes.items()
            }
        )
