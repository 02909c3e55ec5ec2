"""The command line as one script, which `ray submit` copies to a cluster's head and runs there:

ray submit configs/clusters/ray.yaml launch/ray_job.py farm /shared/albums --out /shared/dataset farm.address=auto
"""

from __future__ import annotations

import sys

from launch.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
