"""The networks and samples of each update, from the method's row in `dpdmd/config/method_table.py`."""

from dpdmd.config.method_table import FAKE, METHODS, STUDENT
from dpdmd.config.options import MethodConfig
from dpdmd.methods.update_schedule import is_student_update


def trained_networks(config: MethodConfig) -> tuple[str, ...]:
    """Return the names of all networks that the method trains."""
    return (STUDENT, FAKE, *METHODS[config.method].trained_with_fake)


def networks_of_update(step: int, config: MethodConfig) -> tuple[str, ...]:
    """Return the names of the networks that update `step` trains; the update is named after the first."""
    if is_student_update(step, config):
        return (STUDENT,)
    return (FAKE, *METHODS[config.method].trained_with_fake)


def uses_sample_pool(step: int, config: MethodConfig) -> bool:
    """Return whether update `step` takes its prompts and start noises from the pool of teacher samples."""
    update = networks_of_update(step, config)[0]
    return bool(config.teacher_cache_size) and METHODS[config.method].teacher_samples_in == update
