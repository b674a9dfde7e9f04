// The kernels of kernels.py as CUDA C++. gpu/kernels.py compiles this file for REAL = float or double; the delta
// rule also for ROWS, TILE and LANES. A test compiles it for the CPU: plain C++ and shared memory, no shuffles.
//
// Legend: N sequences (batch × heads), T time, D width (of one kernel's lanes), R rows, V vocabulary, W taps.

typedef REAL real;
typedef long long integer;

#define EACH(i, n) for (integer i = (integer)blockIdx.x * blockDim.x + threadIdx.x; i < (n); \
                        i += (integer)gridDim.x * blockDim.x)
#define THREADS 128  // of a block that adds up or compares; a power of two

template <typename Combine>
__device__ real over_block(real x, Combine combine) {
    __shared__ real parts[THREADS];
    const int me = threadIdx.x;
    parts[me] = x;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (me < half) parts[me] = combine(parts[me], parts[me + half]);
        __syncthreads();
    }
    const real all = parts[0];
    __syncthreads();  // before anybody writes parts again
    return all;
}

__device__ real block_sum(real x) {
    return over_block(x, [](real a, real b) { return a + b; });
}

__device__ real block_max(real x) {  // NaN wins, as in NumPy
    return over_block(x, [](real a, real b) { return a > b || a != a ? a : b; });
}

// GELU: x/(1 + e^−2s), 2s = s1·x + s3·x³ ----------------------------------------------------------------------

__device__ real gelu_gate(real x) {
    const real s1 = 1.5957691216057308, s3 = 1.5957691216057308 * 0.044715;
    return (real)1 / ((real)1 + exp(-x * (s1 + s3 * x * x)));
}

extern "C" __global__ void gelu(integer n, const real* x, real* y) {
    EACH(i, n) y[i] = x[i] * gelu_gate(x[i]);
}

extern "C" __global__ void gelu_backward(integer n, const real* x, const real* y_bar, real* x_bar) {
    const real s1 = 1.5957691216057308, s3 = 3 * 1.5957691216057308 * 0.044715;
    EACH(i, n) {
        const real p = gelu_gate(x[i]);
        x_bar[i] = y_bar[i] * (p + x[i] * p * ((real)1 - p) * (s1 + s3 * x[i] * x[i]));
    }
}

// RMS normalisation: a block per row; backwards a block per `rows_each` rows, so that w_bar adds up in one order ---

extern "C" __global__ void rms_norm(integer D, real eps, const real* x, const real* w, real* y, real* r) {
    const integer row = blockIdx.x;
    real squares = 0;
    for (integer j = threadIdx.x; j < D; j += THREADS) squares += x[row * D + j] * x[row * D + j];
    const real scale = (real)1 / sqrt(block_sum(squares) / (real)D + eps);
    for (integer j = threadIdx.x; j < D; j += THREADS) y[row * D + j] = w[j] * x[row * D + j] * scale;
    if (threadIdx.x == 0) r[row] = scale;
}

extern "C" __global__ void rms_norm_backward(integer R, integer D, integer rows_each, const real* x, const real* w,
                                             const real* r, const real* y_bar, real* x_bar, real* w_parts) {
    const integer part = blockIdx.x, first = part * rows_each;
    for (integer j = threadIdx.x; j < D; j += THREADS) w_parts[part * D + j] = 0;
    for (integer row = first; row < first + rows_each && row < R; ++row) {
        const real* x_row = x + row * D;
        const real* y_row = y_bar + row * D;
        real dot = 0;
        for (integer j = threadIdx.x; j < D; j += THREADS) dot += w[j] * y_row[j] * x_row[j];
        const real shrink = block_sum(dot) * r[row] * r[row] / (real)D;
        for (integer j = threadIdx.x; j < D; j += THREADS) {
            x_bar[row * D + j] = r[row] * (w[j] * y_row[j] - x_row[j] * shrink);
            w_parts[part * D + j] += y_row[j] * x_row[j] * r[row];
        }
    }
}

// Softmax cross-entropy: a block per row. A target outside 0..V−1 gives NaN, which stops the run --------------------

extern "C" __global__ void cross_entropy(integer V, integer ignore, const integer* targets, const real* logits,
                                         real* loss, real* z) {
    const integer row = blockIdx.x, target = targets[row];
    const real* l = logits + row * V;
    real top = l[0], total = 0;
    for (integer j = threadIdx.x; j < V; j += THREADS) top = l[j] > top || l[j] != l[j] ? l[j] : top;
    top = block_max(top);
    for (integer j = threadIdx.x; j < V; j += THREADS) total += exp(l[j] - top);
    const real all = top + log(block_sum(total));
    if (threadIdx.x == 0) {
        z[row] = all;
        const real nan = (real)0 / (all - all);
        loss[row] = target == ignore ? (real)0 : target >= 0 && target < V ? all - l[target] : nan;
    }
}

extern "C" __global__ void cross_entropy_backward(integer n, integer V, integer ignore, const integer* targets,
                                                  const real* logits, const real* z, const real* loss_bar,
                                                  real* logits_bar) {
    EACH(i, n) {
        const integer row = i / V, target = targets[row];
        const real scale = target == ignore ? (real)0 : loss_bar[row];
        logits_bar[i] = scale * (exp(logits[i] - z[row]) - (real)(i % V == target));
    }
}

// AdamW, in place ---------------------------------------------------------------------------------------------

extern "C" __global__ void adamw(integer n, real* p, const real* g, real* m, real* v, real rate1, real rate2,
                                 real keep, real lr, real unbias, real eps) {
    EACH(i, n) {
        m[i] += rate1 * (g[i] - m[i]);
        v[i] += rate2 * (g[i] * g[i] - v[i]);
        p[i] = keep * p[i] - lr * m[i] / (sqrt(v[i] * unbias) + eps);
    }
}

// Causal depthwise convolution: x (B,T,D), tail (B,W−1,D), w (W,D) --------------------------------------------------

__device__ real past_at(const real* x, const real* tail, integer b, integer s, integer d, integer T, integer D,
                        integer last) {
    return s >= 0 ? x[(b * T + s) * D + d] : tail[(b * last + last + s) * D + d];
}

extern "C" __global__ void causal_conv(integer n, integer T, integer D, integer W, const real* x, const real* tail,
                                       const real* w, real* y) {
    EACH(at, n) {
        const integer d = at % D, t = at / D % T, b = at / D / T;
        real total = 0;
        for (integer i = 0; i < W; ++i) total += w[i * D + d] * past_at(x, tail, b, t - i, d, T, D, W - 1);
        y[at] = total;
    }
}

extern "C" __global__ void causal_conv_backward(integer n, integer T, integer D, integer W, const real* w,
                                                const real* y_bar, const real* next_bar, real* x_bar,
                                                real* tail_bar) {
    const integer last = W - 1;
    EACH(at, n) {  // n = B(W−1+T)D: every input, those of the tail first
        const integer d = at % D, p = at / D % (last + T), b = at / D / (last + T), s = p - last;
        real total = p >= T ? next_bar[(b * last + p - T) * D + d] : (real)0;
        for (integer i = s < 0 ? -s : 0; i < W && s + i < T; ++i)
            total += w[i * D + d] * y_bar[(b * T + s + i) * D + d];
        if (s >= 0) x_bar[(b * T + s) * D + d] = total;
        else tail_bar[(b * last + p) * D + d] = total;
    }
}

extern "C" __global__ void causal_conv_weights(integer n, integer T, integer D, integer W, const real* x,
                                               const real* tail, const real* y_bar, real* w_parts) {
    EACH(at, n) {  // n = BWD
        const integer d = at % D, i = at / D % W, b = at / D / W;
        real total = 0;
        for (integer t = 0; t < T; ++t)
            total += y_bar[(b * T + t) * D + d] * past_at(x, tail, b, t - i, d, T, D, W - 1);
        w_parts[at] = total;
    }
}

// The delta rule ----------------------------------------------------------------------------------------------
//
// The rows of S do not know of each other (see kernels.py): a block has one sequence and LANES rows, and a thread
// one row, in its registers: ROWS numbers, a constant, so that every loop over them is unrolled.

#ifdef ROWS

// Forwards, chunk-parallel. What the rows share, (I + L) and the decayed Q Kᵀ of TILE tokens, the block computes
// once into shared memory; then every thread solves for its own column of U by forward substitution, token by
// token but without waiting for anybody.
extern "C" __global__ void delta_rule(integer T, integer D, const real* q, const real* k, const real* v,
                                      const real* log_a, const real* b, const real* c, const real* S_0, real* o,
                                      real* S_T) {
    const int width = ROWS + 1;  // one more, so that a column lies in as many banks as it has rows
    __shared__ real K[TILE * (ROWS + 1)], Q[TILE * (ROWS + 1)], L[TILE * TILE], M[TILE * TILE], U[TILE * LANES];
    __shared__ double log_g[TILE + 1];  // log g_{t−1} at t
    const integer n = blockIdx.x, j = (integer)blockIdx.y * LANES + threadIdx.x;
    const bool mine = j < D;
    real S[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) S[i] = mine ? S_0[(n * D + j) * ROWS + i] : (real)0;
    for (integer start = 0; start < T; start += TILE) {
        const int here = T - start < TILE ? (int)(T - start) : TILE;
        const integer at = n * T + start;
        __syncthreads();
        for (int x = threadIdx.x; x < here * ROWS; x += LANES) {
            K[x / ROWS * width + x % ROWS] = k[at * ROWS + x];
            Q[x / ROWS * width + x % ROWS] = q[at * ROWS + x];
        }
        if (threadIdx.x == 0) {
            log_g[0] = 0;
            for (int t = 0; t < here; ++t) log_g[t + 1] = log_g[t] + log_a[at + t];
        }
        __syncthreads();
        for (int x = threadIdx.x; x < here * here; x += LANES) {
            const int t = x / here, i = x % here;
            if (i < t) {
                real kk = 0, qk = 0;
                for (int r = 0; r < ROWS; ++r) {
                    kk += K[t * width + r] * K[i * width + r];
                    qk += Q[t * width + r] * K[i * width + r];
                }
                const real ratio = exp((real)(log_g[t] - log_g[i + 1]));
                L[t * TILE + i] = b[at + t] * ratio * kk;
                M[t * TILE + i] = ratio * qk;
            }
        }
        __syncthreads();
        for (int t = 0; t < here; ++t) {
            real ks = 0, qs = 0;
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                ks += K[t * width + i] * S[i];
                qs += Q[t * width + i] * S[i];
            }
            const real before = exp((real)log_g[t]);
            real u = c[at + t] * (mine ? v[(at + t) * D + j] : (real)0) - b[at + t] * before * ks;
            real read = before * qs;
            for (int i = 0; i < t; ++i) {
                u -= L[t * TILE + i] * U[i * LANES + threadIdx.x];
                read += M[t * TILE + i] * U[i * LANES + threadIdx.x];
            }
            U[t * LANES + threadIdx.x] = u;
            if (mine) o[(at + t) * D + j] = read;
        }
        const real whole = exp((real)log_g[here]);
#pragma unroll
        for (int i = 0; i < ROWS; ++i) S[i] *= whole;
        for (int t = 0; t < here; ++t) {
            const real u = U[t * LANES + threadIdx.x] * exp((real)(log_g[here] - log_g[t + 1]));
#pragma unroll
            for (int i = 0; i < ROWS; ++i) S[i] += u * K[t * width + i];
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
        if (mine) S_T[(n * D + j) * ROWS + i] = S[i];
}

// Backwards, the four recurrences of kernels.delta_rule_backward, in registers. X (ROWS,D) is S or its transpose,
// or their cotangents: element (i,j) lies at i·by_row + j·by_lane. Null pointers: not asked for, or a constant.

// X_t = a_t X_{t−1} + w_t u_tᵀ,  u_t = c_t v_t − b_t y1_t,  y1_t = X_{t−1}ᵀ p1_t,  y2_t = X_{t−1}ᵀ p2_t;
// b null: 0, c null: 1
extern "C" __global__ void scan_forward(integer T, integer D, integer by_row, integer by_lane, const real* w,
                                        const real* p1, const real* p2, const real* v, const real* b, const real* c,
                                        const real* log_a, const real* X_0, real* y1, real* y2, real* u, real* X_T) {
    __shared__ real W[TILE * ROWS], P1[TILE * ROWS], P2[TILE * ROWS];
    const integer n = blockIdx.x, j = (integer)blockIdx.y * LANES + threadIdx.x, state = n * ROWS * D;
    const bool mine = j < D;
    real X[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) X[i] = mine ? X_0[state + i * by_row + j * by_lane] : (real)0;
    for (integer start = 0; start < T; start += TILE) {
        const int here = T - start < TILE ? (int)(T - start) : TILE;
        const integer at = n * T + start;
        __syncthreads();
        for (int x = threadIdx.x; x < here * ROWS; x += LANES) {
            W[x] = w[at * ROWS + x];
            P1[x] = p1[at * ROWS + x];
            P2[x] = p2[at * ROWS + x];
        }
        __syncthreads();
        for (int t = 0; t < here; ++t) {
            real read1 = 0, read2 = 0;
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                read1 += P1[t * ROWS + i] * X[i];
                read2 += P2[t * ROWS + i] * X[i];
            }
            const integer place = (at + t) * D + j;
            const real a = exp(log_a[at + t]);
            const real value = mine ? v[place] : (real)0;
            const real u_t = (c ? c[at + t] : (real)1) * value - (b ? b[at + t] * read1 : (real)0);
#pragma unroll
            for (int i = 0; i < ROWS; ++i) X[i] = a * X[i] + W[t * ROWS + i] * u_t;
            if (mine && y1) y1[place] = read1;
            if (mine && y2) y2[place] = read2;
            if (mine && u) u[place] = u_t;
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
        if (mine && X_T) X_T[state + i * by_row + j * by_lane] = X[i];
}

// X_{t−1} = a_t X_t + w1_t (c_t v1_t − b_t y_t)ᵀ + w2_t v2_tᵀ,  y_t = X_tᵀ p_t;  b null: 0, c null: 0
extern "C" __global__ void scan_backward(integer T, integer D, integer by_row, integer by_lane, const real* w1,
                                         const real* w2, const real* p, const real* v1, const real* v2, const real* b,
                                         const real* c, const real* log_a, const real* X_T, real* y, real* X_0) {
    __shared__ real W1[TILE * ROWS], W2[TILE * ROWS], P[TILE * ROWS];
    const integer n = blockIdx.x, j = (integer)blockIdx.y * LANES + threadIdx.x, state = n * ROWS * D;
    const bool mine = j < D;
    real X[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) X[i] = mine ? X_T[state + i * by_row + j * by_lane] : (real)0;
    for (integer end = T; end > 0; end -= TILE) {
        const int here = end < TILE ? (int)end : TILE;
        const integer at = n * T + end - here;
        __syncthreads();
        for (int x = threadIdx.x; x < here * ROWS; x += LANES) {
            W1[x] = w1[at * ROWS + x];
            W2[x] = w2[at * ROWS + x];
            P[x] = p[at * ROWS + x];
        }
        __syncthreads();
        for (int t = here - 1; t >= 0; --t) {
            real y_t = 0;
#pragma unroll
            for (int i = 0; i < ROWS; ++i) y_t += P[t * ROWS + i] * X[i];
            const integer place = (at + t) * D + j;
            const real a = exp(log_a[at + t]), second = mine ? v2[place] : (real)0;
            const real first = (c && mine ? c[at + t] * v1[place] : (real)0) - (b ? b[at + t] * y_t : (real)0);
#pragma unroll
            for (int i = 0; i < ROWS; ++i) X[i] = a * X[i] + W1[t * ROWS + i] * first + W2[t * ROWS + i] * second;
            if (mine) y[place] = y_t;
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
        if (mine && X_0) X_0[state + i * by_row + j * by_lane] = X[i];
}

#endif

// What needs no state, a block per token, from k_bar = Gᵀu and v_bar = ū:  k_bar −= b Sᵀū,  v_bar = c ū,
// b_bar = −k·Sᵀū,  c_bar = ū·v,  and for log a: written = ū·u,  carried = q̄·q − c ū·v
extern "C" __global__ void delta_rule_gather(integer d_k, integer d_v, const real* q, const real* k, const real* v,
                                             const real* b, const real* c, const real* u, const real* Su,
                                             const real* q_bar, real* k_bar, real* v_bar, real* b_bar, real* c_bar,
                                             real* written, real* carried) {
    const integer t = blockIdx.x;
    real u_v = 0, u_u = 0, k_Su = 0, q_q = 0;
    for (integer j = t * d_v + threadIdx.x; j < (t + 1) * d_v; j += THREADS) {
        u_v += v_bar[j] * v[j];
        u_u += v_bar[j] * u[j];
        v_bar[j] *= c[t];
    }
    for (integer j = t * d_k + threadIdx.x; j < (t + 1) * d_k; j += THREADS) {
        k_Su += k[j] * Su[j];
        q_q += q[j] * q_bar[j];
        k_bar[j] -= b[t] * Su[j];
    }
    u_v = block_sum(u_v), u_u = block_sum(u_u), k_Su = block_sum(k_Su), q_q = block_sum(q_q);
    if (threadIdx.x == 0) {
        b_bar[t] = -k_Su;
        c_bar[t] = u_v;
        written[t] = u_u;
        carried[t] = q_q - c[t] * u_v;
    }
}
