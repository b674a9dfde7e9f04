"""Where does the time go?  One kernel a file: its definition in NumPy on top, its compiled twin below.

    z = kernels.gelu(x)                            # the fastest version for such arrays
    z, back = kernels.gelu.vjp(x)                  # and the way back: cotangents of z → cotangents of x
    z = kernels.gelu.definition(x)                 # always NumPy's functions, on arrays of any library and on tensors
    gelu = autograd.fused(kernels.gelu)            # the operation, with derivatives of any order

The definition is the reference: every twin equals it forwards, and backwards its derivative (tests/test_kernels.py).
`runtime` decides which version runs, compiles, caches and deals out to threads; `lanes` has what LLVM is needed for,
`shared` what threads share.
The largest kernel, `titans`, is a package; its definition is SelfModifyingTitans in the root's titans.py.

Legend: B batch, T time, N sequences (batch × heads), D width, V vocabulary; x̄ is the cotangent of x, in code x_bar.
"""

from kernels.adamw import adamw
from kernels.attention import attention
from kernels.causal_conv import causal_conv
from kernels.cross_entropy import cross_entropy
from kernels.delta_rule import delta_rule
from kernels.gelu import gelu
from kernels.product import product
from kernels.rms_norm import rms_norm
from kernels.runtime import GRAIN, JIT, Kernel, cache_folder, compiled, compiling, set_threads, split
from kernels.swiglu import swiglu

KERNELS = {kernel.name: kernel for kernel in (
    gelu, swiglu, rms_norm, cross_entropy, causal_conv, attention, delta_rule, adamw)}

__all__ = ["GRAIN", "JIT", "KERNELS", "Kernel", "adamw", "attention", "cache_folder", "causal_conv", "compiled",
           "compiling", "cross_entropy", "delta_rule", "gelu", "product", "rms_norm", "set_threads", "split", "swiglu"]
