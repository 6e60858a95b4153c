"""The Python example of README, as statements."""

import ast
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()
SNIPPET = README.split("```python\n")[1].split("```")[0]


def statements(**replaced: str) -> dict[str, str]:
    """The lines of the example: the function that is called, or the name that is set -> source text.

    Args:
        replaced: text in the example -> what to put there instead.
    """
    text = SNIPPET
    for old, new in replaced.items():
        assert old in text, f"README's example does not have {old}"
        text = text.replace(old, new)
    return {name_of(node): ast.unparse(node) for node in ast.parse(text).body}


def name_of(node: ast.stmt) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.unparse(node.value.func)
    return ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else ast.unparse(node)
