"""What calls functions of cuecraft with keywords that they do not take."""

import ast
import importlib
import inspect


def unknown_keywords(name):
    """Yield each keyword of a module's calls that the function does not take."""
    module = importlib.import_module(name)
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        called = getattr(module, node.func.id, None)
        if not callable(called) or not (getattr(called, "__module__", None) or "").startswith("cuecraft"):
            continue
        taken = inspect.signature(called).parameters
        if any(own.kind is inspect.Parameter.VAR_KEYWORD for own in taken.values()):
            continue
        for keyword in node.keywords:
            if keyword.arg is not None and keyword.arg not in taken:
                yield f"{name}: {node.func.id}({keyword.arg}=)"
