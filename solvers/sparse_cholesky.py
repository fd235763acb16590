"""Sparse Cholesky factorisation by whichever library the machine has: PARDISO, CHOLMOD, SuperLU.

All take the upper triangle of a symmetric matrix in CSR, sorted, the diagonal present. The ordering
and the symbolic phase are done once per pattern, the numeric phase once per damping.
Libraries are imported when a solver is made, not with this module.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import os
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.errors import MissingDependencyError, SolveError
from autograd_gpu.solvers.direct_solver import DirectSolver

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.integer[Any]]

_INSTALL_PARDISO = "pip install autograd-gpu[fast] (x86-64 only)"
_INSTALL_CHOLMOD = "pip install 'scikit-sparse<0.5' (needs the SuiteSparse headers)"


# --- PARDISO -----------------------------------------------------------------------------------

_ANALYSIS, _FACTORIZATION, _SOLUTION, _FORWARD_SUBSTITUTION, _RELEASE = 11, 22, 33, 331, -1
_SYMMETRIC_POSITIVE_DEFINITE = 2
_NOT_POSITIVE_DEFINITE = -4
_PARDISO_ERRORS = {
    -1: "inconsistent input",
    -2: "not enough memory; try linear_solver='pcg'",
    -3: "reordering failed",
    -8: "the factor has more entries than 32-bit indices can count",
}
# Unknowns from which on the two-level schedule 10 was faster than 1 (by 5 % at 33 000, 15 % at
# 120 000; at 10 000 it was three times slower). Both give the same bits in every run on the same
# number of threads, which schedule 0 does not.
_LARGE = 30_000


@functools.cache
def _load_mkl() -> ctypes.CDLL:
    """Load the MKL runtime library that pypardiso depends on.

    pypardiso searches the whole environment for it (0.2 s, twice), so the list of files of the
    installed `mkl` package is asked first.
    """
    path = os.environ.get("PYPARDISO_MKL_RT")
    if path is None:
        try:
            files = importlib.metadata.files("mkl") or []
        except importlib.metadata.PackageNotFoundError:
            files = []
        path = next(
            (str(f.locate()) for f in files if "mkl_rt" in f.name and f.suffix != ".lib"), ""
        )
    if path:
        try:
            return ctypes.CDLL(path)
        except OSError:
            pass
    try:
        return importlib.import_module("pypardiso").ps.libmkl
    except ImportError as error:
        raise MissingDependencyError(
            f"PARDISO was not found ({error}); {_INSTALL_PARDISO}"
        ) from error


# Intel's OpenMP lets a thread that is out of work spin for 200 ms, on a core that our threads need
# for assembling and evaluating. After 1 ms it may sleep: no shorter, or else the many small
# parallel parts of a substitution wait for threads to wake (2 ms in place of 0.2).
_SPIN_MILLISECONDS = 1


@functools.cache
def _load_openmp() -> ctypes.CDLL | None:
    """Intel's OpenMP, if MKL runs its threads by it."""
    _load_mkl().MKL_Get_Max_Threads()  # the first call loads it
    loaded: Any = importlib.import_module("threadpoolctl").ThreadpoolController()
    return next((lib.dynlib for lib in loaded.select(prefix="libiomp").lib_controllers), None)


@contextmanager
def _threads_sleep_soon() -> Generator[None]:
    """Let threads of MKL that are started in this block sleep soon after their work."""
    openmp = _load_openmp()
    if openmp is None:
        yield
        return
    before = openmp.kmp_get_blocktime()
    openmp.kmp_set_blocktime(min(before, _SPIN_MILLISECONDS))
    try:
        yield
    finally:
        openmp.kmp_set_blocktime(before)


class _PardisoHandle:
    """One matrix inside PARDISO: its opaque pointers and parameters, and how to free them."""

    def __init__(self, mkl: ctypes.CDLL, indptr: IndexArray, indices: IndexArray) -> None:
        # pardiso_64 takes 64-bit integers whatever interface the process runs MKL with.
        wide = indptr.dtype == np.int64 or indices.dtype == np.int64
        self.integer: type[np.int64] | type[np.int32] = np.int64 if wide else np.int32
        self.routine: Any = mkl.pardiso_64 if wide else mkl.pardiso
        self.routine.restype = None
        self.n = indptr.size - 1
        self.indptr = np.ascontiguousarray(indptr, self.integer)
        self.indices = np.ascontiguousarray(indices, self.integer)
        self.pointers = np.zeros(64, np.int64)
        self.parameters = np.zeros(64, self.integer)
        # Zero-based positions; Intel's manual counts the parameters from one.
        self.parameters[0] = 1  # the values below, not the defaults
        self.parameters[1] = 3  # nested dissection, in parallel
        self.parameters[17] = -1  # report the entries of the factor
        self.parameters[23] = 10 if self.n >= _LARGE else 1  # two-level parallel factorisation
        self.parameters[34] = 1  # zero-based indices

    def call(self, phase: int, values: FloatArray, rhs: FloatArray, out: FloatArray) -> int:
        """Run one phase; returns PARDISO's error code."""

        def scalar(value: int) -> NDArray[np.integer[Any]]:
            return np.array([value], self.integer)

        columns = 1 if rhs.ndim == 1 else rhs.shape[1]
        error = scalar(0)
        arguments = (
            self.pointers, scalar(1), scalar(1), scalar(_SYMMETRIC_POSITIVE_DEFINITE),
            scalar(phase), scalar(self.n), values, self.indptr, self.indices,
            scalar(0), scalar(columns), self.parameters, scalar(0), rhs, out, error,
        )  # fmt: skip
        with _threads_sleep_soon():
            self.routine(*(ctypes.c_void_p(array.ctypes.data) for array in arguments))
        return int(error[0])

    def release(self) -> None:
        nothing = np.zeros(1)
        self.call(_RELEASE, nothing, nothing, nothing)


class PardisoCholesky(DirectSolver):
    """Intel MKL's PARDISO: supernodal, parallel, nested dissection ordering.

    Raises:
        MissingDependencyError: MKL is not installed.
    """

    name = "sparse-cholesky (PARDISO)"

    def __init__(self) -> None:
        super().__init__()
        self._mkl = _load_mkl()
        self._handle: _PardisoHandle | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None

    @property
    def factor_entries(self) -> int:
        """Entries in the factor L, 0 before `analyze`."""
        return 0 if self._handle is None else int(self._handle.parameters[17])

    def _analyze(self) -> None:
        self._release()
        self._handle = _PardisoHandle(self._mkl, self.indptr, self.indices)
        # The factor lives in MKL's memory: free it also when the solver is dropped unclosed.
        self._finalizer = weakref.finalize(self, self._handle.release)
        self._values = np.zeros(self.indices.size)
        self._ones, self._forward = np.ones(self.n), np.zeros(self.n)
        self._check(self._run(_ANALYSIS), "analysis")

    def _factorize(self, values: FloatArray) -> bool:
        self._values = values
        error = self._run(_FACTORIZATION)
        if error == _NOT_POSITIVE_DEFINITE:
            return False
        self._check(error, "factorisation")
        # PARDISO 2026.2 reports success, with a NaN in L, where the only negative pivot is the last
        # of a connected component. Forward substitution (4 % of the time) brings it to light.
        self._check(self._run(_FORWARD_SUBSTITUTION, self._ones, self._forward), "factorisation")
        return bool(np.isfinite(self._forward).all())

    def _solve(self, rhs: FloatArray) -> FloatArray:
        out = np.empty_like(rhs)
        self._check(self._run(_SOLUTION, rhs, out), "solution")
        return out

    def close(self) -> None:
        """Free the factors. The solver can be used again from `analyze` on."""
        super().close()
        self._release()

    def _run(self, phase: int, rhs: FloatArray | None = None, out: FloatArray | None = None) -> int:
        assert self._handle is not None  # analyze has run
        empty = np.zeros(1)
        return self._handle.call(
            phase, self._values, empty if rhs is None else rhs, empty if out is None else out
        )

    def _check(self, error: int, phase: str) -> None:
        if error:
            reason = _PARDISO_ERRORS.get(error, "see the manual of oneMKL PARDISO")
            raise SolveError(
                f"{self.name}, {phase} of {self.n} unknowns with {self.indices.size} entries: "
                f"error {error}: {reason}"
            )

    def _release(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._finalizer = self._handle = None


# --- CHOLMOD -----------------------------------------------------------------------------------


class CholmodCholesky(DirectSolver):
    """CHOLMOD through scikit-sparse 0.4: supernodal, nested dissection ordering.

    Raises:
        MissingDependencyError: scikit-sparse is not installed, or has another interface.
    """

    name = "sparse-cholesky (CHOLMOD)"

    def __init__(self) -> None:
        super().__init__()
        self._library = _load_cholmod()
        self._factor: Any = None

    def _analyze(self) -> None:
        self._factor = self._library.analyze(
            self._lower(np.ones(self.indices.size)), mode="supernodal", ordering_method="nesdis"
        )

    def _factorize(self, values: FloatArray) -> bool:
        try:
            self._factor.cholesky_inplace(self._lower(values))
        except self._library.CholmodNotPositiveDefiniteError:
            return False
        return True

    def _solve(self, rhs: FloatArray) -> FloatArray:
        return self._factor(rhs)

    def close(self) -> None:
        """Free the factors. The solver can be used again from `analyze` on."""
        super().close()
        self._factor = None

    def _lower(self, values: FloatArray) -> Any:
        """Read the upper triangle by rows as the lower one by columns, which CHOLMOD takes."""
        sparse: Any = importlib.import_module("scipy.sparse")
        return sparse.csc_matrix((values, self.indices, self.indptr), shape=(self.n, self.n))


def _load_cholmod() -> Any:
    try:
        library = importlib.import_module("sksparse.cholmod")
    except ImportError as error:
        raise MissingDependencyError(
            f"CHOLMOD was not found ({error}); {_INSTALL_CHOLMOD}"
        ) from error
    if not hasattr(library, "analyze") or not hasattr(library, "CholmodNotPositiveDefiniteError"):
        raise MissingDependencyError(
            f"scikit-sparse has another interface than 0.4; {_INSTALL_CHOLMOD}"
        )
    return library


# --- SuperLU -----------------------------------------------------------------------------------


class SuperLUCholesky(DirectSolver):
    """SciPy's SuperLU in symmetric mode: always there, but slow, and it stores both L and U.

    With the diagonal as pivots LU equals LDLᵀ, and the matrix is positive definite if and only if
    U's diagonal is positive. The ordering (minimum degree) is found by the first factorisation and
    used again by the later ones.
    """

    name = "sparse-cholesky (SuperLU)"

    def _analyze(self) -> None:
        self._factors: Any = None
        self._order: NDArray[np.intp] | None = None
        self._factors_order: NDArray[np.intp] | None = None
        self._permute(np.arange(self.n))

    def _permute(self, order: NDArray[np.intp]) -> None:
        """Prepare the full matrix with unknown k at position order[k]."""
        sparse: Any = importlib.import_module("scipy.sparse")
        rows = np.repeat(np.arange(self.n), np.diff(self.indptr))
        columns = self.indices
        strict = np.flatnonzero(rows != columns)
        entry = np.concatenate((np.arange(columns.size), strict))
        full_rows = order[np.concatenate((rows, columns[strict]))]
        full_columns = order[np.concatenate((columns, rows[strict]))]
        by_column = np.lexsort((full_rows, full_columns))
        self._source = entry[by_column]
        starts = np.concatenate(([0], np.cumsum(np.bincount(full_columns, minlength=self.n))))
        self._full: Any = sparse.csc_matrix(
            (
                np.zeros(entry.size),
                full_rows[by_column].astype(np.intc),
                starts.astype(np.intc),
            ),
            shape=(self.n, self.n),
        )

    def _factorize(self, values: FloatArray) -> bool:
        splu: Any = importlib.import_module("scipy.sparse.linalg").splu
        np.take(values, self._source, out=self._full.data)
        self._factors = None
        try:
            factors: Any = splu(
                self._full,
                permc_spec="MMD_AT_PLUS_A" if self._order is None else "NATURAL",
                diag_pivot_thresh=0.0,
                options={"SymmetricMode": True},
            )
        except RuntimeError:  # exactly singular
            return False
        # SuperLU leaves the diagonal only at a zero pivot: then the matrix is not definite.
        if not np.array_equal(factors.perm_r, factors.perm_c):
            return False
        if not (factors.U.diagonal() > 0.0).all():
            return False
        self._factors, self._factors_order = factors, self._order
        if self._order is None:
            self._order = np.asarray(factors.perm_c, np.intp)
            self._permute(self._order)
        return True

    def _solve(self, rhs: FloatArray) -> FloatArray:
        if self._factors_order is None:
            return self._factors.solve(rhs)
        permuted = np.empty_like(rhs)
        permuted[self._factors_order] = rhs
        return self._factors.solve(permuted)[self._factors_order]

    def close(self) -> None:
        """Free the factors. The solver can be used again from `analyze` on."""
        super().close()
        self._factors = None


# --- what is there -----------------------------------------------------------------------------


def available_sparse_cholesky() -> list[tuple[str, bool, str]]:
    """List the libraries, fastest first: name, found, version or how to install."""
    found: list[tuple[str, bool, str]] = []
    for name, load, package, install in (
        ("PARDISO", _load_mkl, "mkl", _INSTALL_PARDISO),
        ("CHOLMOD", _load_cholmod, "scikit-sparse", _INSTALL_CHOLMOD),
    ):
        try:
            load()
            found.append((name, True, _version(package)))
        except MissingDependencyError:
            found.append((name, False, install))
    return [*found, ("SuperLU", True, _version("scipy"))]


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package}, version unknown"


def fastest_sparse_cholesky() -> DirectSolver:
    """Make a solver of the fastest library that is installed."""
    for solver in (PardisoCholesky, CholmodCholesky):
        try:
            return solver()
        except MissingDependencyError:
            continue
    return SuperLUCholesky()
