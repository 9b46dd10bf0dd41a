"""The formulas: tensors in, tensors out, one value per sample; per-sample losses are not reduced over the batch.

`entropy.py` measures how unsure a teacher is, `weights.py` turns that into trust, `targets.py` fuses K teachers into
one set of soft targets, `distillation.py` and `relations.py` compare a student with them, `hint.py` compares features;
`standardising.py` may come before.

Shapes: K teachers, B samples, C classes. Everything is computed in float32, or in float64 for float64 logits.
"""

from demkd.losses.distillation import decoupled_kd_loss, kd_loss, label_loss
from demkd.losses.entropy import entropy, non_target_class_entropy, target_class_entropy
from demkd.losses.hint import hint_loss
from demkd.losses.relations import (
    gram_losses,
    inter_class_loss,
    intra_class_loss,
    level_kd_loss,
)
from demkd.losses.standardising import standardised
from demkd.losses.targets import (
    CoupledTargets,
    DecoupledTargets,
    LevelTargets,
    RelationTargets,
    fuse_coupled,
    fuse_decoupled,
    fuse_enhanced,
    fuse_levels,
    fuse_relations,
    power_sums,
)
from demkd.losses.weights import (
    UNCERTAINTIES,
    WEIGHT_FORMS,
    effective_teachers,
    entropy_weights,
    mask_wrong_teachers,
    uniform_weights,
    wrong_and_trusted,
)

__all__ = [
    "UNCERTAINTIES",
    "WEIGHT_FORMS",
    "CoupledTargets",
    "DecoupledTargets",
    "LevelTargets",
    "RelationTargets",
    "decoupled_kd_loss",
    "effective_teachers",
    "entropy",
    "entropy_weights",
    "fuse_coupled",
    "fuse_decoupled",
    "fuse_enhanced",
    "fuse_levels",
    "fuse_relations",
    "gram_losses",
    "hint_loss",
    "inter_class_loss",
    "intra_class_loss",
    "kd_loss",
    "label_loss",
    "level_kd_loss",
    "mask_wrong_teachers",
    "non_target_class_entropy",
    "power_sums",
    "standardised",
    "target_class_entropy",
    "uniform_weights",
    "wrong_and_trusted",
]
