"""Layers that run over tokens one by one, and forms of them that can be trained."""
