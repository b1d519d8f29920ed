"""Whether what serves is installed: looked at before anything that needs it is imported."""

from __future__ import annotations

from ddt_accel.errors import DependencyError


def check_ray() -> None:
    """Raises DependencyError where what serves is not installed."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import pydantic  # noqa: F401
        import uvicorn  # noqa: F401
        from ray import serve  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"`ddt-accel serve` needs Ray Serve, which is not installed here ({error}): pip install "
            "'ddt-accel[cluster]'."
        ) from None
