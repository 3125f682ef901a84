"""The class this package replaces, as it was given to us: the other judge beside reference.py.

Its statements are verbatim; only the formatter has touched them, and a mangled arrow in a comment.
"""

import numpy as np


class AdaFactor:
    def __init__(
        self, shape, lr=1e-2, beta2=0.999, eps=1e-30, clip_threshold=1.0, scale_parameter=True
    ):
        """
        Args:
            shape: shape of parameter tensor
            lr: base learning rate
            beta2: second moment decay (factorized if tensor is matrix)
            eps: small constant for numerical stability
            clip_threshold: threshold for adaptive gradient clipping
            scale_parameter: if True, scale lr by parameter norm
        """
        self.lr = lr
        self.beta2 = beta2
        self.eps = eps
        self.clip_threshold = clip_threshold
        self.scale_parameter = scale_parameter

        # Initialize factored second-moment estimates
        if len(shape) == 2:  # matrix (factorized)
            self.exp_row = np.zeros((shape[0],))
            self.exp_col = np.zeros((shape[1],))
            self.factored = True
        else:  # vector or higher-dim -> unfactored
            self.v = np.zeros(shape)
            self.factored = False

        self.t = 0  # step counter

    def update(self, param, grad):
        self.t += 1
        grad2 = grad * grad + self.eps  # squared grad

        if self.factored:
            # Row/col averages for factorization
            new_exp_row = self.beta2 * self.exp_row + (1 - self.beta2) * grad2.mean(axis=1)
            new_exp_col = self.beta2 * self.exp_col + (1 - self.beta2) * grad2.mean(axis=0)

            # Reconstruct v_hat using outer product approx
            v_hat = np.outer(new_exp_row, new_exp_col) / new_exp_row.mean()

            self.exp_row, self.exp_col = new_exp_row, new_exp_col
        else:
            self.v = self.beta2 * self.v + (1 - self.beta2) * grad2
            v_hat = self.v

        # RMS of gradients
        rms_g = np.sqrt(np.mean(grad2))  # noqa: F841

        # Adaptive gradient clipping
        grad_norm = grad / (np.sqrt(v_hat) + self.eps)
        grad_rms = np.sqrt(np.mean(grad_norm**2))
        clipping_denom = max(1.0, grad_rms / self.clip_threshold)
        grad_norm /= clipping_denom

        # Parameter scaling for lr
        param_scale = np.sqrt(np.mean(param**2)) if self.scale_parameter else 1.0
        lr_t = self.lr * param_scale

        # Update params
        param -= lr_t * grad_norm
        return param
