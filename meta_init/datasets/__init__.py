"""Labelled images in classes, and the data sets of few-shot learning."""

from meta_init.datasets.classes import Classes, split_classes
from meta_init.datasets.omniglot import omniglot

__all__ = ["Classes", "omniglot", "split_classes"]
