"""Reduction methods: one file each, all of them a frozen dataclass with a `select`."""

from dart.methods.base import Method, View, Vision
from dart.methods.dart import DART
from dart.methods.random import Random

__all__ = ["DART", "Method", "Random", "View", "Vision"]
