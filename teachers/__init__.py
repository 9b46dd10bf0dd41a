"""Frozen networks and what they answer; the field's checkpoints, read without running code."""

from demkd.teachers.checkpoint import Checkpoint, load_weights, read_checkpoint, state_sha256, trained_classes
from demkd.teachers.errors import CheckpointError, TeacherError
from demkd.teachers.teacher import Answer, Teacher, feature_key

__all__ = [
    "Answer",
    "Checkpoint",
    "CheckpointError",
    "Teacher",
    "TeacherError",
    "feature_key",
    "load_weights",
    "read_checkpoint",
    "state_sha256",
    "trained_classes",
]
