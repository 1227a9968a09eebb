"""How OpenMP's threads wait, set before torch loads it: they spin for a few ten microseconds, then sleep.

To sleep at once costs short ops a part of their speed; to spin on, as OpenMP does by default, takes the core from
whatever else the machine runs, and where that runs on the core of one thread all others burn theirs until it is done.
Importing this module sets GOMP_SPINCOUNT, where neither that nor OMP_WAIT_POLICY is set. Once torch is imported it does
nothing: set the variable before, or import quamba first.
"""

import os

SPINS = "1000"  # beside a busy neighbour calibration takes 0.6 of what it takes with 10000 (benchmarks/busy.py)

if "OMP_WAIT_POLICY" not in os.environ:  # a policy that the user chose stays in force
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
