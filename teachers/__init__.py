"""Frozen networks, their logits and features; checkpoints of the field, read without running code."""

from demkd.teachers.checkpoint import CheckpointError, load_weights, read_checkpoint, state_sha256, trained_classes
from demkd.teachers.teacher import Prediction, Teacher, TeacherError, feature_key

__all__ = [
    "CheckpointError", "Prediction", "Teacher", "TeacherError", "feature_key", "load_weights", "read_checkpoint",
    "state_sha256", "trained_classes",
]  # fmt: skip
