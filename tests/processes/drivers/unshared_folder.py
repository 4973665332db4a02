"""Run `dpdmd.train` on two machines that share no disk: the run folder of rank 1 is another."""

import os
import sys

from dpdmd import train

arguments = sys.argv[1:]
if os.environ["RANK"] == "1":
    place = arguments.index("--run_dir") + 1
    arguments[place] += "_of_machine_1"
sys.exit(train.main(arguments))
