"""llmbench tells people the truth about an LLM serving stack: how fast it is, and whether it is still right."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["LLM", "__version__"]

if TYPE_CHECKING:
    from llmbench.serving.offline import LLM


def __getattr__(name: str) -> Any:
    """`LLM` is imported when it is first asked for, so that `import llmbench` stays light."""
    if name == "LLM":
        from llmbench.serving.offline import LLM

        return LLM
    raise AttributeError(f"module 'llmbench' has no attribute {name!r}")
