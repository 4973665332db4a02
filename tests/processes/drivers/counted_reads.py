"""`dpdmd.train`; $READS gets a line for every file that a rank hashes, and one for the status with which a rank ends
without the others."""

import hashlib
import os
import signal
import sys

from dpdmd import train

hash_file, end = hashlib.file_digest, os._exit


def record(what: object) -> None:
    with open(os.environ["READS"], "a") as reads:
        reads.write(f"{os.environ['RANK']} {what}\n")


def file_digest(file, digest):
    record(file.name)
    return hash_file(file, digest)


def exit_at_once(status):
    record(status)
    end(status)


hashlib.file_digest, os._exit = file_digest, exit_at_once
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, when the other rank has ended first
sys.exit(train.main(sys.argv[1:]))
