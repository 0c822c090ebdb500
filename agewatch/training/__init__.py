"""Labelled faces -> a model."""
