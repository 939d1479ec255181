"""The table of faults names tests that exist, and its page says what the table says."""

from __future__ import annotations

import ast
from xml.etree import ElementTree as ET

from tests.faults import HEADER, PAGE, ROOT, Row, outcomes, page, read_rows, result_of, split

REPORT = """<testsuites><testsuite>
<testcase classname="tests.unit.test_a" name="test_one[x]"/>
<testcase classname="tests.unit.test_a" name="test_one[y]"><failure/></testcase>
<testcase classname="tests.e2e.test_b.TestB" name="test_two"/>
<testcase classname="tests.e2e.test_b" name="test_three"><skipped/></testcase>
</testsuite></testsuites>"""


def defined(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_each_of_the_20_rows_names_tests_that_exist() -> None:
    rows = read_rows()
    assert len(rows) == 20
    assert all(row.tests for row in rows)
    known = {file: defined(file) for file in {split(test)[0] for row in rows for test in row.tests}}
    assert [test for row in rows for test in row.tests if split(test)[1] not in known[split(test)[0]]] == []


def test_the_page_is_that_of_the_rows() -> None:
    written, _, footer = PAGE.read_text(encoding="utf-8").partition("\nLast run on ")
    assert written == page(read_rows()), "run scripts/faults --write"
    assert written.startswith(HEADER)
    assert "of 20 rows passed" in footer


def test_a_test_passes_with_all_its_parameters_only() -> None:
    worst = outcomes(ET.fromstring(REPORT))  # noqa: S314 - the text above
    assert worst == {"unit/test_a.py::test_one": "failure", "e2e/test_b.py::test_two": "passed", "e2e/test_b.py::test_three": "skipped"}
    assert result_of(Row("c", "b", "n", ("e2e/test_b.py::test_two",)), worst) == "passed"
    bad = Row("c", "b", "n", ("unit/test_a.py::test_one", "e2e/test_b.py::test_two", "unit/test_a.py::test_gone"))
    assert result_of(bad, worst) == "2 of 3 not passed: unit/test_a.py::test_one, unit/test_a.py::test_gone"
