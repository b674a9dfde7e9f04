"""A named tuple that compiled code hands on by one pointer.

Numba hands a tuple on number by number, nine for every array in it: of the kernel of Titans that was half of what LLVM
was given. The fields of a record cannot be changed; loops take them out first, for a store into any array might be one
into a record.
"""

from __future__ import annotations

import hashlib
from collections import namedtuple
from typing import Any

from kernels.runtime import JIT

if JIT:
    from numba.core import types
    from numba.core.cgutils import gep_inbounds, get_or_insert_function, ir
    from numba.core.imputils import impl_ret_borrowed
    from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_getattr, infer_global, signature
    from numba.extending import lower_builtin, lower_getattr_generic, models, register_model

    class Record(types.Type):
        """Fields, each of a type."""

        def __init__(self, name: str, fields: tuple[str, ...], kinds: tuple):
            self.fields, self.whole = fields, types.Tuple(kinds)  # type: ignore[attr-defined]
            super().__init__(f"{name}_{hashlib.sha256(repr(kinds).encode()).hexdigest()[:8]}")

    @register_model(Record)
    class _RecordModel(models.StructModel):
        def __init__(self, manager: Any, kind: Record):
            super().__init__(manager, kind, [("meminfo", types.MemInfoPointer(types.voidptr))])  # type: ignore[attr-defined]

    @infer_getattr
    class _FieldTemplate(AttributeTemplate):
        key = Record

        def generic_resolve(self, kind: Record, name: str) -> Any:
            return kind.whole[kind.fields.index(name)] if name in kind.fields else None

    @lower_getattr_generic(Record)
    def _field(context, builder, kind, value, name):
        i, meminfo = kind.fields.index(name), context.make_helper(builder, kind, value).meminfo
        field = builder.load(gep_inbounds(builder, _place(context, builder, kind, meminfo), 0, i))
        return impl_ret_borrowed(context, builder, kind.whole[i], field)

    def _place(context, builder, kind, meminfo):
        data = context.nrt.meminfo_data(builder, meminfo)
        return builder.bitcast(data, context.get_value_type(kind.whole).as_pointer())

    def _make(context, builder, sig, args):
        kind, size = sig.return_type, context.get_abi_sizeof(context.get_value_type(sig.return_type.whole))
        made = context.make_helper(builder, kind)
        made.meminfo = context.nrt.meminfo_alloc_dtor(
            builder, context.get_constant(types.uintp, size), _end(context, builder.module, kind))
        place = _place(context, builder, kind, made.meminfo)
        for i, value in enumerate(args):
            context.nrt.incref(builder, sig.args[i], value)
            builder.store(value, gep_inbounds(builder, place, 0, i))
        return made._getvalue()

    def _end(context, module, kind):
        """What is called when nobody has a record any more."""
        pointer, size = ir.IntType(8).as_pointer(), context.get_value_type(types.uintp)
        end = get_or_insert_function(
            module, ir.FunctionType(ir.VoidType(), [pointer, size, pointer]), f"end_{kind.name}")
        if end.is_declaration:
            end.linkage = "linkonce_odr"
            builder = ir.IRBuilder(end.append_basic_block())
            place = builder.bitcast(end.args[0], context.get_value_type(kind.whole).as_pointer())
            context.nrt.decref(builder, kind.whole, builder.load(place))
            builder.ret_void()
        return end


def record(name: str, fields: str) -> Any:
    """A function that makes records of these fields; where nothing is compiled, a named tuple."""
    if not JIT:
        return namedtuple(name, fields)  # type: ignore[misc]

    def made(*args: Any) -> None: ...

    class Template(AbstractTemplate):
        key = made

        def generic(self, args: tuple, kws: dict) -> Any:
            kinds = tuple(map(types.unliteral, args))  # type: ignore[attr-defined]
            return signature(Record(name, tuple(fields.split()), kinds), *kinds)
    infer_global(made, types.Function(Template))
    lower_builtin(made, types.VarArg(types.Any))(_make)  # type: ignore[attr-defined]
    return made
