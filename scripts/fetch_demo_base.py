"""Fetch the demo's base model and print the folder that holds it."""

from orpo_mlx.demo.base import fetch_demo_base

if __name__ == "__main__":
    print(fetch_demo_base())
