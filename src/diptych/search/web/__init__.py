"""The explorer: an index in a browser."""

from diptych.errors import missing_extra

try:
    import fastapi  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise missing_extra(f"{error.name}", "serve", "the explorer") from error
