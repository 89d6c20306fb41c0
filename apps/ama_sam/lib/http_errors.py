from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import HTTPException
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException
from scripts.errors import DataError, root_cause

__all__ = ["told_to_client"]


@contextmanager
def told_to_client() -> Iterator[None]:
    """Turn errors that a client can mend into HTTP errors with their text; the server would answer 500 without any."""
    try:
        yield
    except HTTPException:
        raise
    except (ImageNotFoundException, LabelNotFoundException) as error:
        raise HTTPException(404, error.msg) from error
    except MONAILabelException as error:
        raise HTTPException(400, error.msg) from error
    except Exception as error:
        cause = root_cause(error)
        if not isinstance(cause, DataError):
            raise
        raise HTTPException(422, str(cause)) from error
