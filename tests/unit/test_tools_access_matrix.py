"""The page that says who may call what is what the contracts say."""

from pathlib import Path

from services.chassis.access import RULES
from tools import access_matrix

PAGE = Path(__file__).parents[2] / "docs" / "access-matrix.md"


def test_the_page_is_what_the_descriptors_say() -> None:
    assert PAGE.read_text() == access_matrix.page(), "python -m tools.access_matrix > docs/…"


def test_a_row_tells_an_own_tenant_from_every_tenant() -> None:
    (row,) = [line for line in access_matrix.page().splitlines() if "| QueryAudit " in line]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["", "", "", "", "yes", "own", "yes"]


def test_every_scope_that_opens_something_has_a_column() -> None:
    named = {scope for rule in RULES.values() for scope in rule.any_scope | rule.own_tenant_scope}
    assert named == set(access_matrix._SCOPES)
