"""One step of a matrix that lies in pieces on ranks, in float64: slow, and by what each rank knows.

Each function is one layout. A rank sees its own part of grad and param; what it learns of others goes
through `all_reduce`, which adds up what all ranks give, and which counts. The formula is the paper's
with ``eps_mode="grad_squared"``:

    R = beta2 R + (1 - beta2) (r / cols + eps)      r_i = sum_j g_ij^2
    C = beta2 C + (1 - beta2) (c / rows + eps)      c_j = sum_i g_ij^2
    RMS(u)^2 = mean(R) w / (rows cols)              w = sum_ij g_ij^2 / (R_i C_j)
    param -= lr max(eps_scale, RMS(param)) g / sqrt(R_i C_j / mean(R)) / max(1, RMS(u) / d)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Matrix:
    """A matrix over ranks.

    Attributes
    ----------
    rows, cols : int
        Of the whole.
    grads, params : lists of ndarray
        What each rank has.
    places : list of (slice, slice), or of slice
        Where: a box, or a range of the elements in C order (arrays of one axis).
    exp_row, exp_col : ndarrays
        Of the whole, before the step; each rank knows its own lines only.
    """

    rows: int
    cols: int
    grads: list
    params: list
    places: list
    exp_row: np.ndarray
    exp_col: np.ndarray
    beta2: float = 0.9
    eps: float = 1e-30
    lr: float = 1e-2
    eps_scale: float = 1e-3
    clip_threshold: float = 1.0
    n_exchanges: int = 0

    def all_reduce(self, given):
        """Return the sum of what the ranks give, on all of them."""
        self.n_exchanges += 1
        return np.sum(given, axis=0)

    def row_means(self, row_sq, lines=slice(None)):
        new = row_sq / self.cols + self.eps
        return self.beta2 * self.exp_row[lines] + (1 - self.beta2) * new

    def col_means(self, col_sq, lines=slice(None)):
        new = col_sq / self.rows + self.eps
        return self.beta2 * self.exp_col[lines] + (1 - self.beta2) * new


def rows(matrix):
    """Whole rows: one exchange of c and D_j = sum_i g^2 / R_i, for R is final on its rank."""
    own, said = [], []
    for grad, param, (at, _) in zip(matrix.grads, matrix.params, matrix.places):
        sq = grad * grad
        exp_row = matrix.row_means(sq.sum(axis=1), at)
        weighted = (sq / exp_row[:, None]).sum(axis=0)
        own.append(exp_row)
        said.append([*sq.sum(axis=0), *weighted, exp_row.sum(), (param * param).sum()])
    total = matrix.all_reduce(said)
    n = matrix.cols
    exp_col = matrix.col_means(total[:n])
    w = (total[n : 2 * n] / exp_col).sum()
    return _stepped(matrix, own, [exp_col] * len(own), total[-2], total[-1], w)


def cols(matrix):
    """Whole columns: one exchange of r and D_i = sum_j g^2 / C_j, for C is final on its rank."""
    own, said = [], []
    for grad, param, (_, at) in zip(matrix.grads, matrix.params, matrix.places):
        sq = grad * grad
        exp_col = matrix.col_means(sq.sum(axis=0), at)
        weighted = (sq / exp_col).sum(axis=1)
        own.append(exp_col)
        said.append([*sq.sum(axis=1), *weighted, (param * param).sum()])
    total = matrix.all_reduce(said)
    m = matrix.rows
    exp_row = matrix.row_means(total[:m])
    w = (total[m : 2 * m] / exp_row).sum()
    return _stepped(matrix, [exp_row] * len(own), own, exp_row.sum(), total[-1], w)


def boxes(matrix):
    """Any boxes: r and c, then w by another read, for neither R nor C is final on a rank before."""
    said = []
    for grad, param, (i, j) in zip(matrix.grads, matrix.params, matrix.places):
        row_sq, col_sq = np.zeros(matrix.rows), np.zeros(matrix.cols)
        row_sq[i], col_sq[j] = (grad * grad).sum(axis=1), (grad * grad).sum(axis=0)
        said.append([*row_sq, *col_sq, (param * param).sum()])
    total = matrix.all_reduce(said)
    exp_row = matrix.row_means(total[: matrix.rows])
    exp_col = matrix.col_means(total[matrix.rows : -1])
    own = [(exp_row[i], exp_col[j]) for i, j in matrix.places]
    w = matrix.all_reduce([(g * g / np.outer(r, c)).sum() for g, (r, c) in zip(matrix.grads, own)])
    own_rows, own_cols = zip(*own)
    return _stepped(matrix, own_rows, own_cols, exp_row.sum(), total[-1], w)


def flat(matrix):
    """Ranges: r of the rows that are cut and c, then w from D_j of whole rows and cut ones again."""
    said = []
    for grad, param, at in zip(matrix.grads, matrix.params, matrix.places):
        i, j = np.divmod(np.arange(at.start, at.stop), matrix.cols)
        row_sq, col_sq = np.zeros(matrix.rows), np.zeros(matrix.cols)
        np.add.at(row_sq, i, grad * grad)
        np.add.at(col_sq, j, grad * grad)
        said.append([*row_sq, *col_sq, (param * param).sum()])
    total = matrix.all_reduce(said)
    exp_row = matrix.row_means(total[: matrix.rows])
    exp_col = matrix.col_means(total[matrix.rows : -1])
    own_rows, own_cols, w_of = [], [], []
    for grad, at in zip(matrix.grads, matrix.places):
        i, j = np.divmod(np.arange(at.start, at.stop), matrix.cols)
        own_rows.append(exp_row[i])
        own_cols.append(exp_col[j])
        w_of.append((grad * grad / (exp_row[i] * exp_col[j])).sum())
    w = matrix.all_reduce(w_of)
    return _stepped(matrix, own_rows, own_cols, exp_row.sum(), total[-1], w)


def _stepped(matrix, own_rows, own_cols, sum_row, param_sq, w):
    """Return each rank's new param, and the RMS of the update before it was clipped."""
    n = matrix.rows * matrix.cols
    mean_row = sum_row / matrix.rows
    rms_u = np.sqrt(mean_row * w / n)
    scale = max(matrix.eps_scale, np.sqrt(param_sq / n))
    size = matrix.lr * scale / max(1, rms_u / matrix.clip_threshold)
    params = []
    for grad, param, row, col in zip(matrix.grads, matrix.params, own_rows, own_cols):
        v = row * col if grad.ndim == 1 else np.outer(row, col)
        params.append(param - size * grad / np.sqrt(v / mean_row))
    return params, rms_u
