// The kernels of kernels/ as CUDA C++. gpu/kernels.py compiles this file for REAL = float or double; the delta
// rule also for ROWS, TILE and LANES, self-modifying Titans for SIDE. A test compiles it for the CPU: plain C++ and
// shared memory, no shuffles.
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
        // beyond ±22 the gate is 0 or 1, and x² must not grow
        const real z = x[i] < -22 ? (real)-22 : x[i] > 22 ? (real)22 : x[i], p = gelu_gate(z);
        x_bar[i] = y_bar[i] * (p + z * p * ((real)1 - p) * (s1 + s3 * z * z));
    }
}

// SwiGLU: y·x/(1 + e^−x) -----------------------------------------------------------------------------------------

extern "C" __global__ void swiglu(integer n, const real* x, const real* y, real* z) {
    EACH(i, n) z[i] = y[i] * (x[i] / ((real)1 + exp(-x[i])));
}

extern "C" __global__ void swiglu_backward(integer n, const real* x, const real* y, const real* z_bar, real* x_bar,
                                           real* y_bar) {
    EACH(i, n) {
        const real p = (real)1 / ((real)1 + exp(-x[i]));
        x_bar[i] = z_bar[i] * y[i] * p * ((real)1 + x[i] * ((real)1 - p));
        y_bar[i] = z_bar[i] * x[i] * p;
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
                                         real* loss, real* tops, real* totals) {
    const integer row = blockIdx.x, target = targets[row];
    const real* l = logits + row * V;
    real top = l[0], total = 0;
    for (integer j = threadIdx.x; j < V; j += THREADS) top = l[j] > top || l[j] != l[j] ? l[j] : top;
    top = block_max(top);
    for (integer j = threadIdx.x; j < V; j += THREADS) total += exp(l[j] - top);
    const real all = log(block_sum(total));
    if (threadIdx.x == 0) {
        tops[row] = top;
        totals[row] = all;
        const real nan = (real)0 / (all - all);
        loss[row] = target == ignore ? (real)0 : target >= 0 && target < V ? all - (l[target] - top) : nan;
    }
}

extern "C" __global__ void cross_entropy_backward(integer n, integer V, integer ignore, const integer* targets,
                                                  const real* logits, const real* tops, const real* totals,
                                                  const real* loss_bar, real* logits_bar) {
    EACH(i, n) {
        const integer row = i / V, target = targets[row];
        const real scale = target == ignore ? (real)0 : loss_bar[row];
        logits_bar[i] = scale * (exp((logits[i] - tops[row]) - totals[row]) - (real)(i % V == target));
    }
}

// The nearest bfloat16, of two equally near ones the even: the upper half of a float32. NaN stays NaN ----------------

extern "C" __global__ void to_bfloat16(integer n, const float* x, unsigned short* y) {
    const unsigned* bits = (const unsigned*)x;
    EACH(i, n) {
        const unsigned half = bits[i] >> 16;
        y[i] = x[i] != x[i] ? half | 0x40 : (bits[i] + 0x7FFF + (half & 1)) >> 16;
    }
}

// AdamW, in place ---------------------------------------------------------------------------------------------

extern "C" __global__ void adamw(integer n, real* p, const real* g, real* m, real* v, real beta1, real rate1,
                                 real beta2, real rate2, real keep, real lr, real unbias, real eps) {
    EACH(i, n) {
        m[i] = beta1 * m[i] + rate1 * g[i];
        v[i] = beta2 * v[i] + rate2 * (g[i] * g[i]);
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

// Backwards, the four recurrences of kernels/delta_rule.py, in registers. X (ROWS,D) is S or its transpose,
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

#endif  // ROWS

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

// Self-modifying Titans: one piece ----------------------------------------------------------------------------
//
// The twin of `titans` in kernels/titans/ for tokens of one chunk; titans.py::SelfModifyingTitans.chunk is the
// definition. A block of SIDE × SIDE threads computes the whole chunk of one sequence after the other.
// Matrices lie feature by token (F,n), tokens side by side, in a workspace of the block; a product brings tiles of
// them to shared memory and adds up in registers, so that any width, hidden size and chunk will do. All threads do
// the same steps: every function ends where all have come (__syncthreads), and what it wrote can be read.
//
// Legend: memory m of q, k, v, eta, alpha, memory has the layers W₂ (h,d) and W₁ (d,h), in a scalar memory (1,h):
// layers 2m and 2m + 1. Suffixes count them in the order of computing: 1 is W₂, 2 is W₁. M₀ is a layer's initial
// state, S its drift now, P its drift at the chunk's start, W = M₀ + P. z (F,n) is its input, E what it should
// write, U what is written: S_C = g_C S + Σ (g_C/g_i) u_i z_iᵀ; G = S̄_C. x̄ is the cotangent of x, in code x_bar.

#ifdef SIDE

#define EDGE 4               // a thread has EDGE × EDGE numbers of a product
#define WIDTH (EDGE * SIDE)  // and the block WIDTH × WIDTH,
#define DEPTH 16             // of DEPTH terms at a time
#define MEMORY 5
#define SCALAR(m) ((m) == 3 || (m) == 4)

struct Matrix {  // element (i,t) lies at i·down + t·across
    real* at;
    int rows, columns, down, across;
    __device__ real& operator()(int i, int t) const { return at[i * down + t * across]; }
    __device__ Matrix T() const { return {at, columns, rows, across, down}; }
};

struct Sizes {  // filled by gpu/kernels.py, as are the next two
    integer adaptive[6], moved[6], hidden[6], B, H, n, d, l2, given;
};

struct Layers {
    real* layer[12];
};

struct Inputs {  // also of cotangents. Biases, readouts and M₀ of another of the batch lie `batch` numbers on: 0,
    real *feeds[4], *bias[2], *readout[2];  // for all share them, but not their cotangents
    Layers initial, now, start;
    integer batch;
};

struct Space {  // of a block, handed out from the front; a copy gives back what was taken from it
    real *at, *end;
    __device__ real* vector(int n) {
        real* found = at;
        at += (n + 3) / 4 * 4;
        if (at > end) __trap();
        return found;
    }
    __device__ double* doubles(int n) { return (double*)vector(n * (int)(sizeof(double) / sizeof(real))); }
    __device__ Matrix matrix(int rows, int columns) { return {vector(rows * columns), rows, columns, columns, 1}; }
};

struct Retention {  // g_{t−1}/g_i, g_{t−1}, g_C/g_i, g_C
    Matrix ratio;
    real *before, *after, whole;
};

struct System {  // ‖z‖², η′, ratio·zᵀz, (I + L)⁻¹, diag(η′)(I + L)⁻ᵀ
    real *square, *rate;
    Matrix gram, inverse, solve;
};

struct Chunk {
    Matrix W[12], q, k, v;
    real *q_r, *k_r, *v_r;
    double *eta, *log_alpha;
    Retention retention;
    System system;
};

struct Learned {
    Matrix s, hidden, s_v, hidden_v, target;
    real* r;
    Matrix delta, D, delta_1, SZ1, E1, U1, SZ2, E2, U2;
    System system;
};

struct Bars {  // cotangents of η, log g_{t−1}, log g, k, v: all memories add
    double *eta, *before, *g;
    Matrix k, v;
};

struct Place {  // what a block works on: in shared memory, one for all of its threads
    Sizes sizes;
    Inputs in;
    Layers after;
    integer i, b, head;  // i = bH + head
};

// products and sums

template <typename Body>
__device__ void each(int rows, int columns, Body body) {
    for (int x = threadIdx.x; x < rows * columns; x += SIDE * SIDE) body(x / columns, x % columns);
    __syncthreads();
}

__device__ void load(real (*tile)[WIDTH + 1], Matrix X, int p_0, int j_0) {  // along what lies side by side
    for (int x = threadIdx.x; x < DEPTH * WIDTH; x += SIDE * SIDE) {
        const int p = X.across == 1 ? x / WIDTH : x % DEPTH, j = X.across == 1 ? x % WIDTH : x / DEPTH;
        tile[p][j] = p_0 + p < X.rows && j_0 + j < X.columns ? X(p_0 + p, j_0 + j) : (real)0;
    }
}

// C += A B
__device__ __noinline__ void add(Matrix C, Matrix A, Matrix B) {
    __shared__ real a[DEPTH][WIDTH + 1], b[DEPTH][WIDTH + 1];
    const int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE;
    for (int i_0 = 0; i_0 < C.rows; i_0 += WIDTH)
        for (int j_0 = 0; j_0 < C.columns; j_0 += WIDTH) {
            real c[EDGE][EDGE] = {};
            for (int p_0 = 0; p_0 < B.rows; p_0 += DEPTH) {
                load(a, A.T(), p_0, i_0);
                load(b, B, p_0, j_0);
                __syncthreads();
#pragma unroll
                for (int p = 0; p < DEPTH; ++p)
#pragma unroll
                    for (int y = 0; y < EDGE; ++y)
#pragma unroll
                        for (int x = 0; x < EDGE; ++x)
                            c[y][x] += a[p][row + y * SIDE] * b[p][column + x * SIDE];
                __syncthreads();
            }
#pragma unroll
            for (int y = 0; y < EDGE; ++y)
#pragma unroll
                for (int x = 0; x < EDGE; ++x) {
                    const int i = i_0 + row + y * SIDE, j = j_0 + column + x * SIDE;
                    if (i < C.rows && j < C.columns) C(i, j) += c[y][x];
                }
        }
    __syncthreads();
}

// dots_t += x_t·y_t: SIDE tokens at a time, the terms of each shared by SIDE threads
template <typename T>
__device__ __noinline__ void add_dots(T* dots, Matrix x, Matrix y) {
    __shared__ real parts[SIDE][SIDE];
    const int part = threadIdx.x / SIDE, column = threadIdx.x % SIDE;
    for (int t = column; t - column < x.columns; t += SIDE) {
        real total = 0;
        if (t < x.columns)
            for (int i = part; i < x.rows; i += SIDE) total += x(i, t) * y(i, t);
        parts[part][column] = total;
        __syncthreads();
        if (part == 0 && t < x.columns)
            for (int other = 0; other < SIDE; ++other) dots[t] += parts[other][column];
        __syncthreads();
    }
}

template <typename T>
__device__ T* zeros(T* x, int n) {
    each(1, n, [&](int, int t) { x[t] = 0; });
    return x;
}

__device__ __noinline__ Matrix zeros(int rows, int columns, Space& space) {
    const Matrix x = space.matrix(rows, columns);
    zeros(x.at, rows * columns);
    return x;
}

__device__ Matrix product(Matrix A, Matrix B, Space& space) {
    const Matrix C = zeros(A.rows, B.columns, space);
    add(C, A, B);
    return C;
}

__device__ real* dots(Matrix x, Matrix y, Space& space) {
    real* found = zeros(space.vector(x.columns), x.columns);
    add_dots(found, x, y);
    return found;
}

__device__ __noinline__ void accumulate(Matrix y, Matrix x) {
    each(x.rows, x.columns, [&](int i, int t) { y(i, t) += x(i, t); });
}

__device__ __noinline__ Matrix sum(Matrix x, Matrix y, Space& space) {
    const Matrix z = space.matrix(x.rows, x.columns);
    each(x.rows, x.columns, [&](int i, int t) { z(i, t) = x(i, t) + y(i, t); });
    return z;
}

__device__ __noinline__ void mask(Matrix x, Matrix ratio) {
    each(x.rows, x.columns, [&](int i, int t) { x(i, t) *= ratio(i, t); });
}

// x_t·scale_t
__device__ __noinline__ Matrix by_token(Matrix x, const real* scale, Space& space) {
    const Matrix y = space.matrix(x.rows, x.columns);
    each(x.rows, x.columns, [&](int i, int t) { y(i, t) = x(i, t) * scale[t]; });
    return y;
}

// y = x r,  r = 1/√(m Σx² + ε) for every token
__device__ __noinline__ Matrix scaled_to(Matrix x, real m, real eps, real*& r, Space& space) {
    real* scale = r = dots(x, x, space);
    each(1, x.columns, [&](int, int t) { scale[t] = (real)1 / sqrt(m * scale[t] + eps); });
    return by_token(x, scale, space);
}

// x̄ = r(ȳ − y m Σȳy)
__device__ __noinline__ Matrix scaled_to_backward(Matrix y, const real* r, real m, Matrix y_bar, Space& space) {
    const Matrix x_bar = space.matrix(y.rows, y.columns);
    const real* along = dots(y, y_bar, space);
    each(y.rows, y.columns, [&](int i, int t) { x_bar(i, t) = r[t] * (y_bar(i, t) - y(i, t) * m * along[t]); });
    return x_bar;
}

// s = σ(x) and y = x s
__device__ __noinline__ Matrix silu(Matrix x, Matrix& s, Space& space) {
    const Matrix gate = s = space.matrix(x.rows, x.columns), y = space.matrix(x.rows, x.columns);
    each(x.rows, x.columns, [&](int i, int t) {
        gate(i, t) = (real)1 / ((real)1 + exp(-x(i, t)));
        y(i, t) = x(i, t) * gate(i, t);
    });
    return y;
}

// g(s + y(1 − s)), the slope of SiLU
__device__ __noinline__ Matrix times_slope(Matrix g, Matrix s, Matrix y, Space& space) {
    const Matrix z = space.matrix(g.rows, g.columns);
    each(g.rows, g.columns, [&](int i, int t) { z(i, t) = g(i, t) * (s(i, t) + y(i, t) * ((real)1 - s(i, t))); });
    return z;
}

// where things lie

__device__ Matrix layer(const Place& at, const Layers& layers, int l, integer i, integer more = 0) {
    const int h = at.sizes.hidden[l / 2], d = at.sizes.d, out = l % 2 == 0 ? h : SCALAR(l / 2) ? 1 : d;
    const int in = l % 2 == 0 ? d : h;
    return {layers.layer[l] + more + i * out * in, out, in, in, 1};
}

__device__ Matrix initial(const Place& at, const Inputs& in, int l) {
    return layer(at, in.initial, l, at.head, at.b * in.batch);
}
__device__ Matrix now(const Place& at, const Inputs& in, int l) { return layer(at, in.now, l, at.i); }
__device__ Matrix start(const Place& at, const Inputs& in, int l) { return layer(at, in.start, l, at.i); }
__device__ Matrix after(const Place& at, int l) { return layer(at, at.after, l, at.i); }

// What projection m is asked with, turned: it lies token by token
__device__ Matrix feed(const Place& at, const Inputs& in, int m) {
    const int n = at.sizes.n, d = at.sizes.d;
    return {in.feeds[m < 3 ? m : 3] + at.i * n * d, d, n, 1, d};
}

__device__ Matrix readout(const Place& at, const Inputs& in, int m) {
    const int d = at.sizes.d;
    return {in.readout[m - 3] + at.b * in.batch + at.head * d, 1, d, d, 1};
}

__device__ real& bias(const Place& at, const Inputs& in, int m) {
    return in.bias[m - 3][at.b * in.batch + at.head];
}

__device__ void add_weights(const Place& at, const Inputs& bars, int l, Matrix W_bar) {
    accumulate(initial(at, bars, l), W_bar);
    accumulate(start(at, bars, l), W_bar);
}

// the chunk's retention and its triangular systems

// All products of α in a chunk, each ≤ 1
__device__ Retention retain(const double* log_alpha, int n, Space& space) {
    double* log_g = space.doubles(n);
    if (threadIdx.x == 0)
        for (int t = 0; t < n; ++t) log_g[t] = log_alpha[t] + (t ? log_g[t - 1] : 0.0);
    __syncthreads();
    const Matrix ratio = space.matrix(n, n);
    real *before = space.vector(n), *after = space.vector(n);
    each(n, n, [&](int t, int i) {  // masked before the exponential, which may overflow for i ≥ t
        ratio(t, i) = i < t ? exp((real)(log_g[t] - log_alpha[t] - log_g[i])) : (real)0;
    });
    each(1, n, [&](int, int t) {
        before[t] = exp(log_g[t] - log_alpha[t]);
        after[t] = exp(log_g[n - 1] - log_g[t]);
    });
    return {ratio, before, after, (real)exp(log_g[n - 1])};
}

// I + L, L = diag(η′)(ratio·zᵀz), inverted, a column by a thread: x_t = e_t − Σ_{i<t} L_ti x_i.  η′ = η/(1 + η‖z‖²)
__device__ __noinline__ System triangular(Matrix z, const double* eta, Matrix ratio, Space& space) {
    const int n = z.columns;
    real *square = dots(z, z, space), *rate = space.vector(n);
    const Matrix gram = product(z.T(), z, space), inverse = space.matrix(n, n), solve = space.matrix(n, n);
    mask(gram, ratio);
    each(1, n, [&](int, int t) { rate[t] = eta[t] / (1 + eta[t] * square[t]); });
    each(1, n, [&](int, int j) {
        for (int t = 0; t < n; ++t) {
            real x = 0;
            for (int i = j; i < t; ++i) x -= gram(t, i) * inverse(i, j);
            inverse(t, j) = t == j ? (real)1 : rate[t] * x;
        }
    });
    each(n, n, [&](int i, int t) { solve(i, t) = rate[i] * inverse(t, i); });
    return {square, rate, gram, inverse, solve};
}

// L̄ = −tril(R̄ᵀU): to the decays, to η′ and by it to η, and to z by the Gram matrix and ‖z‖²
__device__ __noinline__ void triangular_backward(Matrix z, System system, Matrix ratio, Matrix RU, real* rate_bar,
                                                 Bars bars, Matrix z_bar, Space space) {
    const int n = z.columns;
    const real* rate = system.rate;
    const Matrix to_z = space.matrix(n, n);
    each(1, n, [&](int, int t) {
        real total = 0, later = 0;
        for (int i = 0; i < t; ++i) total += RU(t, i) * system.gram(t, i);
        for (int s = t + 1; s < n; ++s) later += RU(s, t) * system.gram(s, t) * rate[s];
        const double shrunk = 1 - rate[t] * system.square[t];
        rate_bar[t] -= total;
        bars.before[t] -= total * rate[t];
        bars.g[t] += later;
        bars.eta[t] += rate_bar[t] * shrunk * shrunk;
    });
    each(n, n, [&](int t, int i) {  // with its transpose
        const int late = t > i ? t : i, soon = t > i ? i : t;
        to_z(t, i) = t == i ? -2 * rate_bar[t] * rate[t] * rate[t] : -RU(late, soon) * rate[late] * ratio(late, soon);
    });
    add(z_bar, z, to_z);
}

// a memory as a function

// M(x) = x + W₁ σ(W₂ x), in a scalar memory r·x + W₁ σ(W₂ x); s and σ(W₂ x)
__device__ __noinline__ Matrix apply(const Place& at, int m, bool adaptive, const Matrix* W, Matrix x, Matrix& s,
                                     Matrix& hidden, Space& space) {
    const Matrix y = zeros(SCALAR(m) ? 1 : x.rows, x.columns, space);
    if (SCALAR(m)) add(y, readout(at, at.in, m), x);
    else accumulate(y, x);
    if (adaptive) {
        hidden = silu(product(W[2 * m], x, space), s, space);
        add(y, W[2 * m + 1], hidden);
    }
    return y;
}

// … of x, or of r·x
__device__ __noinline__ void skip_backward(const Place& at, int m, Matrix x, Matrix y_bar, Matrix x_bar,
                                           const Inputs& bars_at) {
    if (SCALAR(m)) {
        add(x_bar, readout(at, at.in, m).T(), y_bar);
        add(readout(at, bars_at, m), y_bar, x.T());
    } else {
        accumulate(x_bar, y_bar);
    }
}

__device__ __noinline__ void apply_backward(const Place& at, int m, bool adaptive, const Matrix* W, Matrix x, Matrix s,
                                            Matrix hidden, Matrix y_bar, Matrix x_bar, const Inputs& bars_at,
                                            Space space) {
    skip_backward(at, m, x, y_bar, x_bar, bars_at);
    if (!adaptive) return;
    const Matrix inner_bar = times_slope(product(W[2 * m + 1].T(), y_bar, space), s, hidden, space);
    add(x_bar, W[2 * m].T(), inner_bar);
    add_weights(at, bars_at, 2 * m, product(inner_bar, x.T(), space));
    add_weights(at, bars_at, 2 * m + 1, product(y_bar, hidden.T(), space));
}

// learning: from k and v to what is written

// ‖δ‖² at which an error is clipped: RMS 1 in the main memory, length 1 in those that project
__device__ real longest(int m, int size) { return m == MEMORY ? (real)size : (real)1; }

// E = −(δ·min(1, √most/‖δ‖) + M₀z + g_{t−1} S z)
__device__ __noinline__ Matrix surprise(Matrix delta, real most, Matrix MZ, Matrix SZ, const real* before, Space& space) {
    const Matrix E = space.matrix(delta.rows, delta.columns);
    real* clip = dots(delta, delta, space);
    each(1, delta.columns, [&](int, int t) {
        const real scale = (real)1 / sqrt(clip[t] / most + (real)1e-12);
        clip[t] = scale < 1 ? scale : (real)1;
    });
    each(delta.rows, delta.columns, [&](int i, int t) {
        E(i, t) = -(delta(i, t) * clip[t] + MZ(i, t) + before[t] * SZ(i, t));
    });
    return E;
}

// δ̄ = −Ē, and where δ was clipped −(Ē − δ ⟨Ē, δ⟩/‖δ‖²) √most/‖δ‖
__device__ __noinline__ Matrix surprise_backward(Matrix delta, real most, Matrix E_bar, Space& space) {
    const Matrix delta_bar = space.matrix(delta.rows, delta.columns);
    real *scale = dots(delta, delta, space), *along = dots(delta, E_bar, space);
    each(1, delta.columns, [&](int, int t) {
        const real excess = scale[t] / most + (real)1e-12;
        scale[t] = excess > 1 ? (real)1 / sqrt(excess) : (real)1;
        along[t] = excess > 1 ? along[t] / (most * excess) : (real)0;
    });
    each(delta.rows, delta.columns, [&](int i, int t) {
        delta_bar(i, t) = -scale[t] * (E_bar(i, t) - delta(i, t) * along[t]);
    });
    return delta_bar;
}

// What memory m writes: in W₂ z = k, δ₁ = σ′·W₁ᵀδ; in W₁ z = σ(W₂k), δ = M(k) − v̂ or −v̂
__device__ __noinline__ Learned learn(const Place& at, int m, const Chunk& c, Space& space) {
    const int first = 2 * m, second = 2 * m + 1, d = at.sizes.d;
    const bool moved = at.sizes.moved[m], own = SCALAR(m) || !at.sizes.given;  // makes its own target
    const real* before = c.retention.before;
    Learned L;
    const Matrix MZ1 = product(initial(at, at.in, first), c.k, space);
    L.SZ1 = product(now(at, at.in, first), c.k, space);
    const Matrix PZ1 = moved ? product(start(at, at.in, first), c.k, space) : L.SZ1;
    L.hidden = silu(sum(MZ1, PZ1, space), L.s, space);
    const Matrix MZ2 = product(initial(at, at.in, second), L.hidden, space);
    L.SZ2 = product(now(at, at.in, second), L.hidden, space);
    L.target = own ? apply(at, m, true, c.W, c.v, L.s_v, L.hidden_v, space) : c.v;
    const Matrix made = L.target;
    if (SCALAR(m)) each(1, made.columns, [&](int, int t) { made(0, t) = tanh(made(0, t)); });
    else if (own) L.target = scaled_to(made, (real)1 / (real)d, (real)1e-6, L.r, space);
    const Matrix delta = L.delta = zeros(L.target.rows, L.target.columns, space), target = L.target;
    each(delta.rows, delta.columns, [&](int i, int t) { delta(i, t) = -target(i, t); });
    if (at.sizes.l2) {
        accumulate(delta, MZ2);
        accumulate(delta, moved ? product(start(at, at.in, second), L.hidden, space) : L.SZ2);
        if (SCALAR(m)) add(delta, readout(at, at.in, m), c.k);
        else accumulate(delta, c.k);
    }
    L.D = product(c.W[second].T(), delta, space);
    L.delta_1 = times_slope(L.D, L.s, L.hidden, space);
    L.E1 = surprise(L.delta_1, longest(m, L.delta_1.rows), MZ1, L.SZ1, before, space);
    L.E2 = surprise(delta, longest(m, delta.rows), MZ2, L.SZ2, before, space);
    L.system = triangular(L.hidden, c.eta, c.retention.ratio, space);
    L.U1 = product(L.E1, c.system.solve, space);
    L.U2 = product(L.E2, L.system.solve, space);
    return L;
}

// S_C = g_C S + Σ_i (g_C/g_i) u_i z_iᵀ
__device__ __noinline__ void write(Matrix S, Matrix U, Matrix z, const Retention& retention, Matrix S_C, Space space) {
    const real whole = retention.whole;
    each(S.rows, S.columns, [&](int i, int j) { S_C(i, j) = whole * S(i, j); });
    add(S_C, by_token(U, retention.after, space), z.T());
}

// From S̄_C = G and what reads ask of U to R̄ = Ū(I + L)⁻¹, of R = E diag(η′), and to Ē
__device__ __noinline__ Matrix solve_backward(Matrix G, Matrix z, Matrix E, Matrix U, const System& system,
                                              const Retention& retention, Matrix U_bar, Matrix RU, real* rate_bar,
                                              Bars bars, Space& space) {
    const int n = z.columns;
    const Matrix GZ = by_token(product(G, z, space), retention.after, space);
    const real* written = dots(GZ, U, space);
    if (threadIdx.x == 0)
        for (int t = 0; t < n; ++t) {
            bars.g[t] -= written[t];
            bars.g[n - 1] += written[t];
        }
    accumulate(U_bar, GZ);
    const Matrix R_bar = product(U_bar, system.inverse, space);
    add(RU, R_bar.T(), U);
    add_dots(rate_bar, R_bar, E);
    return by_token(R_bar, system.rate, space);
}

// From Ē, from G and from the cotangent of the prediction W z, to z, S, P and M₀
__device__ __noinline__ void write_backward(const Place& at, int l, Matrix G, Matrix z, Matrix U, Matrix SZ,
                                            Matrix E_bar, Matrix made_bar, bool moved, const Retention& retention,
                                            Matrix z_bar, Bars bars, const Inputs& bars_at, Space space) {
    const Matrix S = now(at, at.in, l), S_bar = now(at, bars_at, l);
    const Matrix MZ_bar = space.matrix(E_bar.rows, E_bar.columns), SZ_bar = space.matrix(E_bar.rows, E_bar.columns);
    const real whole = retention.whole;
    each(E_bar.rows, E_bar.columns, [&](int i, int t) {
        MZ_bar(i, t) = made_bar(i, t) - E_bar(i, t);
        SZ_bar(i, t) = -E_bar(i, t) * retention.before[t];
    });
    add_dots(bars.before, SZ_bar, SZ);
    if (moved) {
        add(z_bar, start(at, at.in, l).T(), made_bar);
        add(start(at, bars_at, l), made_bar, z.T());
    } else {
        accumulate(SZ_bar, made_bar);
    }
    const real* GS = dots(G, S, space);
    if (threadIdx.x == 0)
        for (int j = 0; j < S.columns; ++j) bars.g[z.columns - 1] += whole * GS[j];
    each(S.rows, S.columns, [&](int i, int j) { S_bar(i, j) += whole * G(i, j); });
    add(z_bar, initial(at, at.in, l).T(), MZ_bar);
    add(z_bar, S.T(), SZ_bar);
    add(z_bar, G.T(), by_token(U, retention.after, space));
    add(initial(at, bars_at, l), MZ_bar, z.T());
    add(S_bar, SZ_bar, z.T());
}

// `learn` and `write`, line by line from the last
__device__ __noinline__ void learn_backward(const Place& at, int m, const Chunk& c, const Learned& L, Matrix U1_bar,
                                            Matrix U2_bar, Matrix hidden_bar, Matrix RU, real* rate_bar, Bars bars,
                                            const Inputs& bars_at, Space space) {
    const int first = 2 * m, second = 2 * m + 1, n = at.sizes.n;
    const bool moved = at.sizes.moved[m], l2 = at.sizes.l2, own = SCALAR(m) || !at.sizes.given;
    const Matrix RU2 = zeros(n, n, space), G1 = after(at, first), G2 = after(at, second);
    real* rate2_bar = zeros(space.vector(n), n);
    const Matrix E1_bar = solve_backward(G1, c.k, L.E1, L.U1, c.system, c.retention, U1_bar, RU, rate_bar, bars, space);
    const Matrix E2_bar = solve_backward(G2, L.hidden, L.E2, L.U2, L.system, c.retention, U2_bar, RU2, rate2_bar, bars,
                                         space);
    const Matrix delta_1_bar = surprise_backward(L.delta_1, longest(m, L.delta_1.rows), E1_bar, space);
    const Matrix delta_bar = surprise_backward(L.delta, longest(m, L.delta.rows), E2_bar, space);
    const Matrix D_bar = times_slope(delta_1_bar, L.s, L.hidden, space);
    add(delta_bar, c.W[second], D_bar);
    add_weights(at, bars_at, second, product(L.delta, D_bar.T(), space));
    const Matrix made_bar = zeros(delta_bar.rows, n, space), target_bar = zeros(delta_bar.rows, n, space);
    if (l2) {
        accumulate(made_bar, delta_bar);
        skip_backward(at, m, c.k, made_bar, bars.k, bars_at);
    }
    each(target_bar.rows, n, [&](int i, int t) {
        const real slope = SCALAR(m) ? (real)1 - L.target(i, t) * L.target(i, t) : (real)1;  // of tanh
        target_bar(i, t) = -slope * delta_bar(i, t);
    });
    if (!own) accumulate(bars.v, target_bar);
    else apply_backward(at, m, true, c.W, c.v, L.s_v, L.hidden_v, SCALAR(m) ? target_bar : scaled_to_backward(
            L.target, L.r, (real)1 / (real)target_bar.rows, target_bar, space), bars.v, bars_at, space);
    write_backward(at, second, G2, L.hidden, L.U2, L.SZ2, E2_bar, made_bar, moved, c.retention, hidden_bar, bars,
                   bars_at, space);
    triangular_backward(L.hidden, L.system, c.retention.ratio, RU2, rate2_bar, bars, hidden_bar, space);
    const Matrix inner_bar = times_slope(hidden_bar, L.s, L.hidden, space);
    each(inner_bar.rows, n, [&](int j, int t) {  // σ″ = (1 − s)(2s + y − 2ys), y = x s
        const real s = L.s(j, t), y = L.hidden(j, t);
        inner_bar(j, t) += delta_1_bar(j, t) * L.D(j, t) * ((real)1 - s) * (2 * s + y - 2 * y * s);
    });
    write_backward(at, first, G1, c.k, L.U1, L.SZ1, E1_bar, inner_bar, moved, c.retention, bars.k, bars, bars_at,
                   space);
}

// y_t = M₀x_t + g_{t−1} S x_t + Σ_{i<t} ratio_ti (z_i·x_t) u_i;  S x, ratio·zᵀx (i,t)
__device__ __noinline__ Matrix read(const Place& at, int l, Matrix U, Matrix z, Matrix x, const Retention& retention,
                                    Matrix& SX, Matrix& mix, Space& space) {
    SX = product(now(at, at.in, l), x, space);
    mix = product(z.T(), x, space);
    const Matrix y = product(initial(at, at.in, l), x, space);
    accumulate(y, by_token(SX, retention.before, space));
    mask(mix, retention.ratio.T());
    add(y, U, mix);
    return y;
}

__device__ __noinline__ void read_backward(const Place& at, int l, Matrix U, Matrix z, Matrix x, Matrix SX, Matrix mix,
                                           const Retention& retention, Matrix y_bar, Matrix U_bar, Matrix z_bar,
                                           Matrix x_bar, Bars bars, const Inputs& bars_at, Space space) {
    const int n = x.columns;
    const Matrix mix_bar = product(U.T(), y_bar, space);  // (i,t)
    add(U_bar, y_bar, mix.T());
    each(1, n, [&](int, int t) {
        for (int i = 0; i < t; ++i) bars.before[t] += mix_bar(i, t) * mix(i, t);
        for (int s = t + 1; s < n; ++s) bars.g[t] -= mix_bar(t, s) * mix(t, s);
    });
    mask(mix_bar, retention.ratio.T());
    add(z_bar, x, mix_bar.T());
    add(x_bar, z, mix_bar);
    const Matrix SX_bar = by_token(y_bar, retention.before, space);
    add_dots(bars.before, SX_bar, SX);
    add(x_bar, initial(at, at.in, l).T(), y_bar);
    add(x_bar, now(at, at.in, l).T(), SX_bar);
    add(initial(at, bars_at, l), y_bar, x.T());
    add(now(at, bars_at, l), SX_bar, x.T());
}

// the whole chunk

// What the memories are asked, and what they are all written with
__device__ __noinline__ void begin(const Place& at, real eta_max, Chunk& c, Space& space) {
    const int n = at.sizes.n, d = at.sizes.d;
    Matrix asked[5], s, hidden;
    for (int l = 0; l < 12; ++l)
        if (at.sizes.adaptive[l / 2]) c.W[l] = sum(initial(at, at.in, l), start(at, at.in, l), space);
    for (int m = 0; m < 5; ++m)
        asked[m] = apply(at, m, at.sizes.adaptive[m], c.W, feed(at, at.in, m), s, hidden, space);
    double *eta = c.eta = space.doubles(n), *log_alpha = c.log_alpha = space.doubles(n);
    const Matrix to_eta = asked[3], to_alpha = asked[4];
    each(1, n, [&](int, int t) {
        const double x = to_alpha(0, t) + bias(at, at.in, 4);
        eta[t] = eta_max / (1 + exp(-(double)to_eta(0, t) - bias(at, at.in, 3)));
        log_alpha[t] = (x < 0 ? x : 0) - log1p(exp(-fabs(x)));  // log σ(x)
    });
    c.q = scaled_to(asked[0], 1, (real)1e-12, c.q_r, space);
    c.k = scaled_to(asked[1], 1, (real)1e-12, c.k_r, space);
    c.v = scaled_to(asked[2], (real)1 / (real)d, (real)1e-6, c.v_r, space);
    c.retention = retain(log_alpha, n, space);
    c.system = triangular(c.k, eta, c.retention.ratio, space);
}

__device__ void place(Place& at, const Sizes& sizes, const Inputs& in, const Layers& after, integer i) {
    if (threadIdx.x == 0)
        at.sizes = sizes, at.in = in, at.after = after, at.i = i, at.b = i / sizes.H, at.head = i % sizes.H;
    __syncthreads();
}

extern "C" __global__ void titans(Sizes sizes, real eta_max, Inputs in, real* o, Layers layers_after, integer room,
                                  real* workspace) {
    __shared__ Place at;
    for (integer i = blockIdx.x; i < sizes.B * sizes.H; i += gridDim.x) {
        place(at, sizes, in, layers_after, i);
        Space space = {workspace + blockIdx.x * room, workspace + (blockIdx.x + 1) * room};
        Chunk c;
        begin(at, eta_max, c, space);
        for (int m = 0; m <= MEMORY; ++m) {
            if (!at.sizes.adaptive[m]) continue;
            Space here = space;
            const Learned L = learn(at, m, c, here);
            write(now(at, at.in, 2 * m), L.U1, c.k, c.retention, after(at, 2 * m), here);
            write(now(at, at.in, 2 * m + 1), L.U2, L.hidden, c.retention, after(at, 2 * m + 1), here);
            if (m == MEMORY) {
                Matrix SX, mix, s;
                const Matrix x = silu(read(at, 2 * m, L.U1, c.k, c.q, c.retention, SX, mix, here), s, here);
                const Matrix y = read(at, 2 * m + 1, L.U2, L.hidden, x, c.retention, SX, mix, here);
                const int n = y.columns, d = y.rows;
                each(n, d, [&](int t, int j) { o[(i * n + t) * d + j] = c.q(j, t) + y(j, t); });
            }
        }
    }
}

extern "C" __global__ void titans_backward(Sizes sizes, real eta_max, Inputs in, real* o_bar, Layers after_bar,
                                           Inputs bars_at, integer room, real* workspace) {
    __shared__ Place at;
    __shared__ Inputs to;
    if (threadIdx.x == 0) to = bars_at;
    for (integer i = blockIdx.x; i < sizes.B * sizes.H; i += gridDim.x) {
        place(at, sizes, in, after_bar, i);
        const int n = at.sizes.n, d = at.sizes.d;
        Space space = {workspace + blockIdx.x * room, workspace + (blockIdx.x + 1) * room};
        Chunk c;
        begin(at, eta_max, c, space);
        Bars bars = {zeros(space.doubles(n), n), zeros(space.doubles(n), n), zeros(space.doubles(n), n),
                     zeros(d, n, space), zeros(d, n, space)};
        const Matrix RU = zeros(n, n, space), read_bar = {o_bar + i * n * d, d, n, 1, d}, q_bar = zeros(d, n, space);
        real* rate_bar = zeros(space.vector(n), n);
        accumulate(q_bar, read_bar);
        for (int m = 0; m <= MEMORY; ++m) {
            if (!at.sizes.adaptive[m]) continue;
            Space here = space;
            const Learned L = learn(at, m, c, here);
            const Matrix U1_bar = zeros(L.U1.rows, n, here), U2_bar = zeros(L.U2.rows, n, here);
            const Matrix hidden_bar = zeros(L.hidden.rows, n, here);
            if (m == MEMORY) {
                Matrix SX, mix, SX2, mix2, s;
                const Matrix x = silu(read(at, 2 * m, L.U1, c.k, c.q, c.retention, SX, mix, here), s, here);
                read(at, 2 * m + 1, L.U2, L.hidden, x, c.retention, SX2, mix2, here);
                const Matrix x_bar = zeros(x.rows, n, here);
                read_backward(at, 2 * m + 1, L.U2, L.hidden, x, SX2, mix2, c.retention, read_bar, U2_bar, hidden_bar,
                              x_bar, bars, to, here);
                read_backward(at, 2 * m, L.U1, c.k, c.q, SX, mix, c.retention, times_slope(x_bar, s, x, here), U1_bar,
                              bars.k, q_bar, bars, to, here);
            }
            learn_backward(at, m, c, L, U1_bar, U2_bar, hidden_bar, RU, rate_bar, bars, to, here);
        }
        triangular_backward(c.k, c.system, c.retention.ratio, RU, rate_bar, bars, bars.k, space);

        const Matrix y_bar[5] = {scaled_to_backward(c.q, c.q_r, 1, q_bar, space),
                                 scaled_to_backward(c.k, c.k_r, 1, bars.k, space),
                                 scaled_to_backward(c.v, c.v_r, (real)1 / (real)d, bars.v, space),
                                 space.matrix(1, n), space.matrix(1, n)};
        if (threadIdx.x == 0) {
            double log_alpha_bar = 0;
            real eta_bias = 0, alpha_bias = 0;
            for (int t = n - 1; t >= 0; --t) {
                log_alpha_bar += bars.g[t];
                eta_bias += y_bar[3](0, t) = bars.eta[t] * c.eta[t] * (1 - c.eta[t] / eta_max);
                alpha_bias += y_bar[4](0, t) = -log_alpha_bar * expm1(c.log_alpha[t]);
                log_alpha_bar += bars.before[t];
            }
            bias(at, to, 3) = eta_bias;
            bias(at, to, 4) = alpha_bias;
        }
        __syncthreads();
        for (int m = 0; m < 5; ++m) {
            Space here = space;
            const Matrix x = feed(at, at.in, m);
            Matrix s, hidden;
            apply(at, m, at.sizes.adaptive[m], c.W, x, s, hidden, here);
            apply_backward(at, m, at.sizes.adaptive[m], c.W, x, s, hidden, y_bar[m], feed(at, to, m), to, here);
        }
    }
}

#endif  // SIDE
