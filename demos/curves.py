"""A million decays fitted at once: y = a·exp(−b t) + c, each from twelve noisy samples.

An element is a whole curve: three unknowns, twelve residuals, one kernel. Curves share nothing, so
JᵀJ is block diagonal, and conjugate gradients with its blocks as preconditioner are exact after
one iteration. ``autograd-gpu demo curves``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.demos import pictures
from autograd_gpu.demos.stage import Stage

FloatArray = NDArray[np.float64]
TIMES = np.linspace(0.0, 3.0, 12)
NOISE = 0.05
CHUNK = 125_000
OPTIONS = ag.LevenbergMarquardtOptions(
    max_iterations=20, function_tolerance=1e-5, damping="diagonal", linear_tolerance=1e-8
)


def decay(theta: Any, samples: Any) -> list[Any]:
    """Twelve residuals of one curve; theta is (a, b, c)."""
    a, b, c = theta
    return [a * ag.exp(-b * t) + c - samples[k] for k, t in enumerate(TIMES.tolist())]


def draw(axes: Any, samples: FloatArray, fits: FloatArray, start: FloatArray) -> None:
    """Some curves with their samples."""
    t = np.linspace(0.0, 3.0, 200)
    for k, color in enumerate(["#3b6fb6", "#e8622a", "#2f9e77", "#8a5fbf"]):
        axes.plot(TIMES, samples[k], "o", ms=5, color=color)
        for (a, b, c), style in ((start[k], ":"), (fits[k], "-")):
            axes.plot(t, a * np.exp(-b * t) + c, style, color=color, lw=1.8)
    axes.set(xlabel="t", title="four of them: samples, start (dotted), fit")


def main(stage: Stage, count: int = 1_000_000) -> None:
    """Fit ``count`` curves in chunks, and compare with the truth and with theory."""
    rng = np.random.default_rng(4)
    truth = np.column_stack([rng.uniform(1.0, 3.0, count), rng.uniform(0.6, 2.5, count),
                             rng.uniform(-0.5, 0.5, count)])  # fmt: skip
    chunk = min(CHUNK, count)
    problem: ag.Problem | None = None
    fits, seconds, iterations, residual_count = np.empty_like(truth), 0.0, list[int](), 0
    first: tuple[FloatArray, FloatArray] | None = None
    for begin in range(0, count - count % chunk, chunk):
        part = truth[begin : begin + chunk]
        samples = part[:, :1] * np.exp(-part[:, 1:2] * TIMES) + part[:, 2:]
        samples += NOISE * rng.standard_normal(samples.shape)
        # What the samples say at a glance.
        low = samples[:, -1]
        start = np.column_stack([samples[:, 0] - low, np.full(len(part), 1.2), low])
        if problem is None:
            problem, first = ag.Problem(), (samples, start)
            theta = problem.parameters("theta", start)
            problem.add_residuals(decay, theta, samples, name="decay")
        else:
            problem.update(theta=start, data={"decay": {"samples": samples}})
        s = ag.solve(problem, options=OPTIONS, backend=stage.backend, linear_solver="pcg",
                     callback=stage.callback if begin == 0 else None)  # fmt: skip
        fits[begin : begin + chunk] = s.values["theta"]
        seconds += s.timings["total"]
        residual_count += s.residual_count
        iterations.append(s.iterations)
        if stage.progress:
            print(
                f"{begin + chunk} curves, {seconds:.1f} s, {s.iterations} iterations: {s.message}"
            )
    assert first is not None
    done = count - count % chunk
    off, few = fits[:done] - truth[:done], np.linspace(0, chunk - 1, 4).astype(int)
    figure = pictures.figure_row(
        [lambda axes: draw(axes, first[0][few], fits[few], first[1][few]),
         lambda axes: histogram(axes, off / predicted(truth[:done]))], (1200, 480),
    )  # fmt: skip
    pictures.save_figure(figure, stage.path("curves.png"))
    stage.film_of_plot(
        "curves.gif", lambda axes, v: draw(axes, first[0][few], v["theta"][few], first[1][few])
    )
    sigma = predicted(truth[:done])
    rows = [
        [name, f"{off[:, k].mean():+.5f}", f"{np.median(np.abs(off[:, k])):.4f}",
         f"{0.6745 * np.median(sigma[:, k]):.4f}",
         f"{100 * np.mean(np.abs(off[:, k]) < sigma[:, k]):.1f} %"]
        for k, name in enumerate("abc")
    ]  # fmt: skip
    print(f"{done} curves, {residual_count} residuals in {seconds:.1f} s: "
          f"{done / seconds:.0f} fits a second, {np.mean(iterations):.1f} iterations")  # fmt: skip
    columns = ["", "mean error", "median error", "theory: about", "within σ (theory 68.3 %)"]
    stage.close(f"Errors of {done} fits, noise {NOISE}", columns, rows)


def predicted(theta: FloatArray) -> FloatArray:
    """Standard deviations that the noise explains, (n, 3): noise² (JᵀJ)⁻¹ at the truth."""
    e = np.exp(-theta[:, 1:2] * TIMES)
    jacobian = np.stack([e, -theta[:, :1] * TIMES * e, np.ones_like(e)], axis=2)
    covariance = np.linalg.inv(np.swapaxes(jacobian, 1, 2) @ jacobian)
    return NOISE * np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))


def histogram(axes: Any, scores: FloatArray) -> None:
    """Errors over what theory predicts, next to the normal distribution."""
    edges = np.linspace(-4.0, 4.0, 81)
    for k, (name, color) in enumerate(zip("abc", ["#3b6fb6", "#e8622a", "#2f9e77"], strict=True)):
        axes.hist(
            scores[:, k], edges, density=True, histtype="step", lw=1.6, color=color, label=name
        )
    x = np.linspace(-4.0, 4.0, 200)
    axes.plot(x, np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi), "k--", lw=1.0, label="normal")
    axes.set(xlabel="error / predicted standard deviation", title="all of them")
    axes.legend(frameon=False)
