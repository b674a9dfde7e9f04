"""An inner function is linked into what calls it, and only there optimised and made machine code.

Numba would optimise it by itself, again in each function that calls it, again in those that call these, and make
machine code at every depth; but nothing runs except by way of the loops that Python calls.
"""

from __future__ import annotations

from types import SimpleNamespace

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder


class Linked(JITCodeLibrary):
    """Code that is there to be linked, and has no address."""

    def _optimize_final_module(self) -> None: ...

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        return 0

    codegen = property(lambda self: SimpleNamespace(set_env=lambda name, environment: None))


class LinkedCompiler(CompilerBase):
    """Numba's compiler, into a library that is `Linked`."""

    def define_pipelines(self) -> list:
        state = self.state
        state.library = Linked(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        return [DefaultPassBuilder.define_nopython_pipeline(state)]
