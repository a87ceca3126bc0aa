"""Which files are mutated, and which tests are to notice."""

from typing import Final, NamedTuple

_RUNTIME: Final = (
    "tests/unit/test_runtime_mutants.py",
    "tests/unit/test_turn_mutants.py",
    "tests/unit/test_runtime.py",
    "tests/unit/test_deadlines.py",
    "tests/unit/test_placement.py",
    "tests/unit/test_host*.py",
    "tests/unit/test_store_away.py",
    "tests/unit/test_handoff.py",
    "tests/unit/test_reminders.py",
    "tests/unit/test_residents.py",
    "tests/unit/test_activation_tail.py",
    "tests/unit/test_membership.py",
)
_LOG: Final = (
    "tests/contract/test_partition_log*.py",
    "tests/contract/test_reminders.py",
    "tests/contract/test_takeover.py",
    "tests/contract/test_stream_records.py",
    "tests/contract/test_read_models.py",
    "tests/contract/test_database_trouble.py",
)
_WRITER: Final = (*_LOG, "tests/contract/test_log_writer.py")


class Target(NamedTuple):
    """`complete`: every mutant must be killed or argued; of the others only the rate is reported."""

    tests: tuple[str, ...]
    complete: bool = False


TARGETS: Final = {
    "actors/activation.py": Target(_RUNTIME, complete=True),
    "storage/partition_log.py": Target(_LOG, complete=True),
    "storage/log_writer.py": Target(_WRITER),
    "storage/commit_plan.py": Target(("tests/unit/test_commit_plan.py", *_LOG)),
    "actors/turn.py": Target(_RUNTIME),
    "actors/group_commit.py": Target(_RUNTIME),
    "actors/reminders.py": Target(_RUNTIME),
    "actors/ownership.py": Target(_RUNTIME),
    "actors/placement.py": Target(_RUNTIME),
    "actors/residents.py": Target(_RUNTIME),
    "actors/deadlines.py": Target(_RUNTIME),
}
