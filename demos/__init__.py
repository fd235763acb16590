"""Runnable stories: each solves one problem with the public face and writes a picture."""

from __future__ import annotations

STORIES = {
    "arap": "Pose a cow by a few handles, as rigidly as possible.",
    "flatten": "Cut a cow open and flatten it, conformally and isometrically, with a checker.",
    "smooth": "Take the noise off a cow: Laplacian, bilaplacian, robust.",
    "cloth": "Drop a cloth on a ball: implicit time steps, and a film.",
    "ik": "Let ten thousand robot arms reach for the points of a cow.",
    "bundle": "Find cameras and points from pictures, a tenth of the matches wrong.",
    "icp": "Register a cow with a scan of it in another pose, rigidly, then bending.",
    "curves": "Fit a million decays at once.",
    "sketch": "Put a sketch right by constraints: distances, angles, tangents, symmetry.",
}
"""Module of this folder with ``main(stage)``, and the line that says what it does."""
