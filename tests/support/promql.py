"""Reads PromQL: which metrics and labels a query uses. Needs the promql-parser package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import promql_parser as promql

INTERVALS = {"$__rate_interval": "5m", "$__interval": "1m"}


@dataclass
class Use:
    """What a query uses: metric names, the labels it selects or groups them by, and functions applied to each name."""

    labels: dict[str, set[str]] = field(default_factory=dict)
    functions: dict[str, set[str]] = field(default_factory=dict)


def uses(expression: str) -> Use:
    """Parse a query. Raises ValueError with the parser's message when it is not PromQL."""
    for variable, value in INTERVALS.items():
        expression = expression.replace(variable, value)
    use = Use()
    _visit(promql.parse(expression), frozenset(), (), use)
    return use


def _visit(node: object, labels: frozenset[str], functions: tuple[str, ...], use: Use) -> None:
    if isinstance(node, promql.MatrixSelector):
        node = node.vector_selector
    if isinstance(node, promql.VectorSelector):
        matched = {matcher.name for matcher in node.matchers.matchers}
        use.labels.setdefault(node.name, set()).update(labels | matched)
        use.functions.setdefault(node.name, set()).update(functions)
    elif isinstance(node, promql.AggregateExpr):
        grouped = frozenset(node.modifier.labels) if node.modifier is not None else frozenset()
        _visit(node.expr, labels | grouped, functions, use)
    elif isinstance(node, promql.Call):
        for argument in node.args:
            _visit(argument, labels, (*functions, node.func.name), use)
    elif isinstance(node, promql.BinaryExpr):
        for side in (node.lhs, node.rhs):
            _visit(side, labels, functions, use)
    else:
        for inner in _inner(node):
            _visit(inner, labels, functions, use)


def _inner(node: object) -> Iterator[object]:
    if isinstance(node, promql.ParenExpr | promql.UnaryExpr | promql.SubqueryExpr):
        yield node.expr
    elif not isinstance(node, promql.NumberLiteral | promql.StringLiteral):
        raise TypeError(f"unknown PromQL node {type(node).__name__}")
