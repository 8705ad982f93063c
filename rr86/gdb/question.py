"""Conditions on watched memory, as `monitor watch … if EXPRESSION` takes them.

An expression is made of numbers, `value` (the watched bytes as they are after the access),
`vcpu`, `icount` and the names of registers, with the operators of C on integers, `and`, `or` and
`not`. It is read as Python reads it and evaluated here, so that nothing else can be said.
"""

import ast
from collections.abc import Callable, Mapping

from rr86.errors import UsageError

_LONGEST = 500
_DEEPEST = 50
_MASK = (1 << 64) - 1

_BINARY: dict[type, Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.BitAnd: lambda a, b: a & b,
    ast.BitOr: lambda a, b: a | b,
    ast.BitXor: lambda a, b: a ^ b,
    ast.LShift: lambda a, b: a << min(b, 64),
    ast.RShift: lambda a, b: a >> min(b, 64),
}
_COMPARED: dict[type, Callable[[int, int], bool]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}
_UNARY: dict[type, Callable[[int], int]] = {
    ast.USub: lambda a: -a,
    ast.Invert: lambda a: ~a,
    ast.Not: lambda a: int(not a),
}

Names = Mapping[str, int]


class Question:
    """An expression that is true or false at a moment."""

    def __init__(self, text: str, known: Callable[[str], bool]) -> None:
        """`known` tells which names there are. Raises `UsageError` for what is no expression."""
        self.text = text
        if len(text) > _LONGEST:
            raise UsageError(f"a condition has at most {_LONGEST} characters")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            raise UsageError(f"condition {text!r} is no expression") from None
        self._check(self._tree, known, 0)

    def holds(self, names: Names) -> bool:
        """Whether it is true."""
        return bool(_value(self._tree, names))

    def _check(self, node: ast.AST, known: Callable[[str], bool], depth: int) -> None:
        if depth > _DEEPEST:
            raise UsageError(f"condition {self.text!r} is nested too deeply")
        match node:
            case ast.BoolOp(values=parts):
                pass
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                parts = [left, right]
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
                parts = [operand]
            case ast.Compare(left=left, ops=ops, comparators=rest) if all(
                type(op) in _COMPARED for op in ops
            ):
                parts = [left, *rest]
            case ast.Constant(value=int()):
                return
            case ast.Name(id=name):
                if not known(name):
                    raise UsageError(f"condition {self.text!r}: there is no {name!r}")
                return
            case _:
                raise UsageError(f"condition {self.text!r} has something that is not understood")
        for part in parts:
            self._check(part, known, depth + 1)


def _value(node: ast.AST, names: Names) -> int:
    match node:
        case ast.BoolOp(op=ast.And(), values=parts):
            return int(all(_value(part, names) for part in parts))
        case ast.BoolOp(values=parts):
            return int(any(_value(part, names) for part in parts))
        case ast.BinOp(left=left, op=op, right=right):
            # As unsigned 64-bit arithmetic, which registers have.
            return _BINARY[type(op)](_value(left, names), _value(right, names)) & _MASK
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](_value(operand, names)) & _MASK
        case ast.Compare(left=first, ops=ops, comparators=rest):
            values = [_value(each, names) for each in (first, *rest)]
            pairs = zip(ops, values[:-1], values[1:], strict=True)
            return int(all(_COMPARED[type(op)](a, b) for op, a, b in pairs))
        case ast.Constant(value=int(number)):
            return number & _MASK
        case ast.Name(id=name):
            return names[name]
    raise AssertionError(node)
