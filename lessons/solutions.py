"""The answers to all exercises, for those who have tried, and for whoever teaches.

    import solutions
    check.delta_write(solutions.delta_write)
"""

from __future__ import annotations

import check  # noqa: F401  (finds the project's files)
import numpy as np

from autograd import Tensor, grad

# 0. Quickstart ----------------------------------------------------------------------------------------------


def bits_per_byte(p, targets):
    return -np.mean(np.log2(p[np.arange(len(targets)), targets]))


def tempered(logits, temperature):
    p = np.exp(logits / temperature)
    return p / np.sum(p)


def central_difference(f, x, eps):
    return (f(x + eps) - f(x - eps)) / (2 * eps)


# 1. A gradient finds its way back ---------------------------------------------------------------------------


def times_rules(g, x, y):
    return g * y, g * x


def tanh_rule(g, x):
    z = np.tanh(x)
    return g * (1 - z * z)


def linear_rules(g, x, W):
    return g @ W, g.T @ x


def bias_rule(g):
    return np.sum(g, axis=0)


def second_derivative(f, x):
    x = Tensor(x, requires_grad=True)
    (first,) = grad(f(x).sum(), [x], create_graph=True)
    (second,) = grad(first.sum(), [x])
    return second.data


# 2. A weight is an associative memory -----------------------------------------------------------------------


def gradient_step(W, x, error, eta):
    return W - eta * np.outer(error, x)


def ftrl(W1, gradients, eta):
    return W1 - eta * np.sum(gradients, axis=0)


def proximal_step(W, x, y, eta):
    step = eta / (1 + eta * (x @ x))
    return W - step * np.outer(W @ x - y, x)


def momentum_step(W, m, g, eta, mu):
    m = mu * m + eta * g
    return W - m, m


def share_of_last(mu, n):
    return 1 - mu ** n


# 3. One family of memories ----------------------------------------------------------------------------------


def retention_write(S, k, v, alpha):
    return alpha * S + np.outer(v, k)


def delta_write(S, k, v, eta):
    return S + eta * np.outer(v - S @ k, k)


def read_then_write(S, q, k, v):
    o = S @ q
    return o, S + np.outer(v, k)


def dgd_write(S, k, v, alpha, eta):
    step = eta / (1 + eta)
    return alpha * S + step * np.outer(v - S @ k, k)


def chunk_writes(S, K, V, eta):
    L = eta * np.tril(K @ K.T, -1)
    return np.linalg.solve(np.eye(len(K)) + L, eta * (V - K @ S.T))


# 4. A memory that learns while it reads ---------------------------------------------------------------------


def memory_read(W2, W1, x):
    a = W2 @ x
    return x + W1 @ (a / (1 + np.exp(-a)))


def memory_gradients(W2, W1, k, v):
    a = W2 @ k
    s = 1 / (1 + np.exp(-a))
    h = a * s
    delta = k + W1 @ h - v
    inner = (W1.T @ delta) * (s + h * (1 - s))
    return np.outer(inner, k), np.outer(delta, h)


def clip_error(delta):
    return delta * min(1.0, 1 / np.sqrt(np.mean(delta * delta)))


def layer_write(S, M0, z, delta, alpha, eta):
    step = eta / (1 + eta * (z @ z))
    return alpha * S - step * np.outer((S + M0) @ z + delta, z)


def momentum_write(S, N, k, v, alpha, beta, eta):
    N = beta * N + eta * np.outer(v, k)
    return alpha * S - eta * np.outer(S @ k, k) + N, N


def parity_write(S, k, bit):
    return S - 2 * bit * np.outer(S @ k, k)


# 5. Every projection a memory -------------------------------------------------------------------------------


def self_target(W2, W1, k, v):
    made = memory_read(W2, W1, v)
    return made / np.sqrt(np.mean(made * made))


def pull_to_start(M, M0, alpha):
    return M0 + alpha * (M - M0)


def half_life(alpha):
    return np.log(0.5) / np.log(alpha)


def bounded_rate(gate, eta_max, eta_start):
    share = eta_start / eta_max
    b = np.log(share / (1 - share))
    return eta_max / (1 + np.exp(-(gate + b)))


def swing_factor(eta, C):
    return 2 * (1 - eta) ** C - 1


# 6. What moves when -----------------------------------------------------------------------------------------


def due_levels(i, chunks):
    return [i % C == 0 for C in chunks]


def moved_by(gradients, i, C):
    if i % C != 0:
        return 0 * gradients[0]
    return np.sum(gradients[i - C:i], axis=0)


def frequencies(chunks):
    return [max(chunks) / C for C in chunks]


def forgetting(accuracy):
    fall = np.max(accuracy, axis=0) - accuracy[-1]
    return np.mean(fall[:-1])


# 7. Optimisers as memories ----------------------------------------------------------------------------------


def adagrad_step(W, V, g, eta):
    V = V + g * g
    return W - eta * g / np.sqrt(V), V


def look_ahead(m, g, mu):
    m = mu * m + (1 - mu) * g
    return mu * m + (1 - mu) * g, m


def newton_schulz_step(X):
    return X - 0.5 * (X @ X.T - np.eye(len(X))) @ X


def slow_memory(gradients, f, beta):
    M = 0 * gradients[0]
    for end in range(f, len(gradients) + 1, f):
        M = beta * M + (1 - beta) * np.sum(gradients[end - f:end], axis=0)
    return M


# 8. Hope, whole ---------------------------------------------------------------------------------------------


def block(x, mixer, levels, norm):
    x = x + mixer(norm(x))
    for level in levels:
        x = x + level(norm(x))
    return x


def tied_logits(x, E, norm):
    return norm(x) @ E.T


def attention_state(width, blocks, tokens):
    return 2 * width * blocks * tokens


# 9. What the paper claims, and what we could show -----------------------------------------------------------


def interval(values, t):
    return np.mean(values), t * np.std(values, ddof=1) / np.sqrt(len(values))


def paired(a, b, t):
    return interval(a - b, t)


def verdict(mean, half):
    if mean - half > 0:
        return 1
    if mean + half < 0:
        return -1
    return 0
