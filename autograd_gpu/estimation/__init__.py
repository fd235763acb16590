"""Pose graphs and bundles of cameras: problems, synthetic ones, and files in g2o and BAL."""

from __future__ import annotations

from autograd_gpu.estimation.bal import read_bal, write_bal
from autograd_gpu.estimation.bundle import Bundle, reprojection_error
from autograd_gpu.estimation.g2o import read_g2o, write_g2o
from autograd_gpu.estimation.pose_graph import PoseGraph, between
from autograd_gpu.estimation.synthetic import sphere_of_poses

__all__ = [
    "Bundle",
    "PoseGraph",
    "between",
    "read_bal",
    "read_g2o",
    "reprojection_error",
    "sphere_of_poses",
    "write_bal",
    "write_g2o",
]
