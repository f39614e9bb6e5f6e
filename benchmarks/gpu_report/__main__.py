"""`python -m benchmarks.gpu_report`."""

import sys

from benchmarks.gpu_report.card_report import main

sys.exit(main())
