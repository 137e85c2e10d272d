"""Answers judged blind by people: sessions, votes, and what they come to."""
