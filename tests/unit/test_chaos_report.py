"""The chaos suite's report: every row is there, failed and skipped ones with their reason."""

import json

import pytest

from tests.chaos.report import FAILED, SKIPPED, Report, Row, begin, missing, table, write


def a_report() -> Report:
    report = begin("full", "v1-3-gabc", {"cores": 2})
    report.began = "2026-11-22T15:40:03+00:00"
    report.rows = [
        Row("R10", "a gateway sleeps", "t.py::a", load="500 msg/s", repeats=20, seconds=61.7),
        Row(
            "R3",
            "hosts are killed",
            "t.py::b",
            figures={"ack": {"p50_s": 0.003, "p99_s": 0.5}, "sent": 1200, "kept": "LDO"},
        ),
        Row("R1", "power loss", "t.py::c", SKIPPED, "needs root"),
        Row("R2", "a|b", "t.py::d", FAILED, "2 broken promises"),
    ]
    return report


def test_rows_stand_in_the_catalogue_s_order_with_their_figures():
    lines = [line for line in table(a_report()).splitlines() if line.startswith("| R")]
    assert [line.split(" | ")[0] for line in lines] == ["| R1", "| R2", "| R3", "| R10"]
    assert "ack.p50_s 0.003; ack.p99_s 0.5; sent 1200; kept LDO" in lines[2]
    assert lines[3] == "| R10 | a gateway sleeps | 500 msg/s | 20 | 62 |  | passed |"


def test_what_was_skipped_or_failed_says_why():
    text = table(a_report())
    assert "- R1 skipped: needs root (`t.py::c`)" in text
    assert "- R2 FAILED: 2 broken promises (`t.py::d`)" in text
    assert "a\\|b" in text, "a bar within a cell does not end it"


def test_it_is_written_as_json_and_as_a_table_named_by_its_beginning(tmp_path):
    data, text = write(a_report(), tmp_path / "chaos")
    assert (data.name, text.name) == ("20261122T154003Z-full.json", "20261122T154003Z-full.md")
    assert [row["id"] for row in json.loads(data.read_text())["rows"]] == ["R10", "R3", "R1", "R2"]


@pytest.mark.parametrize("never", ["nan", "inf"])
def test_what_was_not_measured_is_left_out_of_the_table_and_null_in_the_json(tmp_path, never):
    report = a_report()
    report.rows[1].figures["ack"]["p99_s"] = float(never)
    data, text = write(report, tmp_path)
    assert "ack.p50_s 0.003; sent 1200" in text.read_text()
    assert json.loads(data.read_text())["rows"][1]["figures"]["ack"] == {"p50_s": 0.003, "p99_s": None}


def test_lines_of_the_catalogue_that_nobody_spoke_of_are_named():
    assert missing(a_report(), ["R1", "R3", "R4"]) == ["R4"]
    assert "R5" in missing(a_report())
