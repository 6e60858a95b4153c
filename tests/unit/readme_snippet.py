"""The statements of the Python example in the README."""

import ast
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()
SNIPPET = README.split("```python\n")[1].split("```")[0]


def statements(**replaced: str) -> dict[str, str]:
    """Statements of the example: name of the called function or assigned variable -> source text.

    Args:
        replaced: text in the example -> its replacement.
    """
    text = SNIPPET
    for old, new in replaced.items():
        assert old in text, f"README's example does not have {old}"
        text = text.replace(old, new)
    return {statement_name(node): ast.unparse(node) for node in ast.parse(text).body}


def statement_name(node: ast.stmt) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.unparse(node.value.func)
    return ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else ast.unparse(node)
