"""The doctor says what a setting means for this machine before anything is started."""

from pathlib import Path

from deploy.doctor import Finding, examine
from deploy.settings import from_environment


async def findings(folder: Path, **settings: str) -> dict[str, Finding]:
    environment = {f"RENOVEASY_{key.upper()}": value for key, value in settings.items()}
    return {finding.name: finding for finding in await examine(from_environment(environment, folder))}


async def test_the_defaults_are_well_and_nothing_is_asked_of_a_platform_that_does_not_run(tmp_path: Path) -> None:
    found = await findings(tmp_path)
    assert {found[name].verdict for name in ("memory", "policy", "hosts that hang", "database")} == {"ok"}
    assert found["policy"].what == "the default"
    assert "hosts" not in found


async def test_caps_that_do_not_fit_into_the_machine_are_named(tmp_path: Path) -> None:
    found = (await findings(tmp_path, hosts="256", host_activations_bytes=str(1 << 34)))["memory"]
    assert found.verdict == "warn"
    assert "RENOVEASY_HOST_ACTIVATIONS_BYTES" in found.advice


async def test_what_differs_from_the_default_policy_is_shown(tmp_path: Path) -> None:
    found = (await findings(tmp_path, policy='{"quote_window_ms": 3000, "rails": ["a"]}'))["policy"]
    assert found.verdict == "ok"
    assert sorted(found.what.split(", ")) == ["quote_window_ms = 3000", 'rails = ["a"]']


async def test_hosts_that_may_hang_for_ever_are_a_warning(tmp_path: Path) -> None:
    found = (await findings(tmp_path, end_paused_hosts="off"))["hosts that hang"]
    assert (found.verdict, "RENOVEASY_END_PAUSED_HOSTS" in found.advice) == ("warn", True)
