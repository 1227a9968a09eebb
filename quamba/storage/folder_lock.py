"""A lock on a folder that one run at a time may write to; it ends with the process, however that ends."""

import fcntl
import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)


def lock_folder(path: Path) -> int | None:
    """Makes the folder where it is missing and returns a descriptor that holds its lock until it is closed.

    None where the file system has no such locks. Raises BlockingIOError where another process, or another part of this
    one, holds it, and OSError where the folder cannot be made or opened.
    """
    while True:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise
        except FileNotFoundError:
            pass  # a run that ended removed it meanwhile: another may have made it anew
        except OSError as error:
            logger.info("%s cannot be locked against a second run: %s", path, error)  # such as a network's
            os.close(descriptor)
            return None
        os.close(descriptor)
