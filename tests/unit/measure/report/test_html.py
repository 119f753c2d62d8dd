"""The HTML page as text: one file, nothing from elsewhere, names escaped, scripts by their hash."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from gemquant.core.artifact.evaluation import LevelEvaluation
from gemquant.measure.report.html import PAGE_ROWS, to_html
from tests.helpers.tiny_evaluation import artifact, document, measured_slice
from tests.helpers.tiny_report import check, report

HOSTILE = "<script>alert(1)</script>\"'&\u2028</script><!--"


class Page(HTMLParser):
    """Elements with their attributes, and the text of each script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, str]] = []
        self._inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in {"script", "style"}:
            self.raw.append((dict(attrs).get("type") or tag, ""))
            self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = None if tag == self._inside else self._inside

    def handle_data(self, data: str) -> None:
        if self._inside is not None:
            kind, text = self.raw[-1]
            self.raw[-1] = kind, text + data

    def of(self, kind: str) -> list[str]:
        return [text for each, text in self.raw if each == kind]


@pytest.fixture(scope="module")
def hostile() -> str:
    made = artifact(HOSTILE, kl={HOSTILE: [0.1], "code": [0.2]})
    made = made.model_copy(update={"scheme": HOSTILE, "container": HOSTILE, "quantizer": HOSTILE})
    return to_html(report(check("regression", slice=HOSTILE), of=document(made)))


def test_the_policy_allows_the_pages_own_script_and_style_only() -> None:
    page = Page(to_html(report()))
    (policy,) = [
        attributes["content"] for tag, attributes in page.elements if "http-equiv" in attributes
    ]
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for kind in ("style", "script")
        for text in page.of(kind)
    ]
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = Page(to_html(report(check())))
    loaded = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in {"src", "href", "srcset", "action"}
        and not (value or "").startswith(("#", "data:,"))
    ]
    assert loaded == []
    assert not any(re.search(r"@import|url\(", text) for text in page.of("style"))


def test_no_element_has_a_style_or_a_handler_of_its_own() -> None:
    page = Page(to_html(report(check("regression"))))
    names = {name for _, attributes in page.elements for name in attributes}
    assert not {name for name in names if name == "style" or name.startswith("on")}


def test_a_hostile_name_adds_no_element(hostile: str) -> None:
    made = artifact("name", kl={"slice": [0.1], "code": [0.2]})
    plain = to_html(report(check("regression", slice="slice"), of=document(made)))
    assert [tag for tag, _ in Page(hostile).elements] == [tag for tag, _ in Page(plain).elements]


def test_a_hostile_name_stays_inside_its_data(hostile: str) -> None:
    (data,) = [text for text in Page(hostile).of("application/json") if "comparisons" in text]
    shown = json.loads(data)["comparisons"][0]["artifacts"][0]["label"]
    assert shown == "<script>alert(1)</script>\"'& </script><!--"
    assert data.isascii()
    assert "<" not in data


def test_the_verdict_is_said_without_scripts() -> None:
    text = to_html(report(check("regression")))
    assert "<strong>Regression</strong>" in text
    assert "the error rises at layer 2 on english" in text


def test_levels_stand_in_tables_of_their_own() -> None:
    native = LevelEvaluation(
        level="native", runtime="llama.cpp", slices=(measured_slice("english", kl=[0.77]),)
    )
    one = artifact("a", kl={"english": [0.1]})
    one = one.model_copy(update={"levels": (*one.levels, native)})
    captions = re.findall(
        "<caption>What was lost at level (\\w+)", to_html(report(of=document(one)))
    )
    assert captions == ["reference", "native"]


def test_long_tables_stand_in_the_page_with_their_first_rows_only() -> None:
    many = [artifact(f"a{number}", kl={"english": [0.1]}) for number in range(PAGE_ROWS + 1)]
    text = to_html(report(of=document(*many)))
    (table,) = re.findall("<caption>The artifacts</caption>.*?</table>", text, flags=re.DOTALL)
    assert table.count("<tr>") == 1 + PAGE_ROWS


def test_the_same_report_is_the_same_page() -> None:
    assert to_html(report(check())) == to_html(report(check()))


def test_where_all_passed_size_and_loss_come_first_and_the_checks_are_folded() -> None:
    page = to_html(report(check(), check(slice="code")))
    folded = page.index("<summary>2 checks passed</summary>")
    assert page.index('id="comparison-0"') < page.index('id="checks"') < folded


def test_what_failed_comes_first_and_only_the_rest_is_folded() -> None:
    page = to_html(report(check("regression"), check(slice="code")))
    assert page.index('id="checks"') < page.index('id="comparison-0"')
    assert "<summary>1 check passed</summary>" in page


def test_an_increase_of_nothing_is_shown_as_0() -> None:
    tiny = check().model_copy(update={"increase": -3.4e-7, "low": -9e-6, "high": 9e-6})
    page = to_html(report(tiny))
    assert ">0</td>" in page
    assert ">0 to 0</td>" in page
