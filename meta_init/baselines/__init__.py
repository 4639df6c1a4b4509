"""What learned initialisations are compared with: metric learners, pretraining and oracles, on the same tasks.

Each is a module with the methods of `MetaLearner`: ``outer_loss(tasks)`` gives a loss and a dict to log,
``evaluate(tasks, steps)`` an `Evaluation`, ``adapt(support)`` a predictor.
"""

from meta_init.baselines.matching import FullContext, matching
from meta_init.baselines.metric import Embedded, MetricLearner
from meta_init.baselines.nearest_neighbour import PretrainedNeighbour, nearest_neighbour
from meta_init.baselines.pretrain import Pooled, Pretrained, pretrained_on_all
from meta_init.baselines.prototypical import prototypical
from meta_init.baselines.siamese import siamese
from meta_init.baselines.sine import OracleSinusoids, oracle

__all__ = [
    "Embedded",
    "FullContext",
    "MetricLearner",
    "OracleSinusoids",
    "Pooled",
    "Pretrained",
    "PretrainedNeighbour",
    "matching",
    "nearest_neighbour",
    "oracle",
    "pretrained_on_all",
    "prototypical",
    "siamese",
]
