"""Labelled images in classes, and the data sets of few-shot learning."""

from learned_optim import read_pickle
from meta_init.datasets.classes import Classes, split_classes
from meta_init.datasets.folders import class_folders
from meta_init.datasets.mini_imagenet import mini_imagenet
from meta_init.datasets.omniglot import omniglot
from meta_init.datasets.splits import read_split, write_split
from meta_init.datasets.tensors import tensor_classes

__all__ = [
    "Classes",
    "class_folders",
    "mini_imagenet",
    "omniglot",
    "read_pickle",
    "read_split",
    "split_classes",
    "tensor_classes",
    "write_split",
]
