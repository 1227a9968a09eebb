"""What a file in a cache was made by: a hash of the code, so that what other code has made is never taken for it."""

import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ("quamba/**/*.py", "csrc/common/*", "csrc/cpu/*")  # what integers and scales come from
LIBRARIES = ("requirements.txt",)


@cache
def sources_sha256(*patterns: str) -> str:
    """SHA-256 of the names and contents of the repository's files that match glob patterns, such as `quamba/**/*.py`.

    Raises ValueError for a pattern that matches nothing: a file that was renamed would drop out of the hash.
    """
    digest = hashlib.sha256()
    for pattern in patterns:
        files = sorted(path for path in ROOT.glob(pattern) if path.is_file())
        if not files:
            raise ValueError(f"{pattern} matches no file of {ROOT}")
        for path in files:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(ROOT)} {content}\n".encode())
    return digest.hexdigest()
