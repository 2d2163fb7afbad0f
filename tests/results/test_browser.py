"""The report in headless Chromium: its filters, its sorting and its groups, by clicks."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from workflow.results.columns import read_table
from workflow.results.labels import method_family, method_label

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
OPTIONS = """
    --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-sync
    --disable-background-networking --disable-component-update --disable-extensions
""".split()
FAMILIES = ["full precision", "direct", "learned bases", "clipped uniform"]  # of the made suite

# Appended to the page, in a block of its own: every step notes what a reader would then see.
CLICKS = """
const seen = {};
const table = document.querySelector(".methods table");
const label = (row) => row.cells[0].textContent.trim();
const visible = (rows) => [...rows].filter((row) => row.getClientRects().length);
const names = () => visible(table.tBodies[0].rows).map(label);
const box = (family) => document.querySelector(`[name="family"][value="${family}"]`);
const head = (text) => [...document.querySelectorAll(".methods table")[0].tHead.rows[0].cells]
  .find((cell) => cell.textContent.replace("\\u2011", "-").trim() === text);
const click = (text) => head(text).querySelector("button").click();
const type = (text) => {
  const field = document.getElementById("filter");
  field.value = text;
  field.dispatchEvent(new Event("input"));
};
const runs = () => ({
  families: [...new Set(visible(document.querySelectorAll("#runs-table tbody tr"))
    .map((row) => row.dataset.family))],
  count: visible(document.querySelectorAll("#runs-table tbody tr")).length,
  said: document.getElementById("shown").textContent,
});

seen.start = names();
seen.boxes = [...document.querySelectorAll('[name="family"]')].map((one) => one.value);
seen.runs = runs();

click("W2A2");
seen.sorted = names();
seen.order = head("W2A2").getAttribute("aria-sort");
click("W2A2");
seen.reversed = names();
seen.reversed_order = head("W2A2").getAttribute("aria-sort");
document.getElementById("grouped").click();
seen.ungrouped = names();
click("Method");
seen.by_name = names();
seen.marked = [...table.querySelectorAll("[aria-sort]")].length;
document.getElementById("grouped").click();
seen.grouped_by_name = names();

box("learned bases").click();
seen.without_bases = names();
seen.runs_without_bases = runs();
type("resnet-20 w2a2");
seen.typed = runs();
click("W2A2");
seen.sorted_without_bases = names();
type("learned bases");
seen.hidden_family_typed = runs();
box("learned bases").click();
seen.family_typed = runs();
type("");
document.getElementById("no-family").click();
seen.none = [names(), runs()];
box("direct").click();
seen.only_direct = [names(), runs()];
document.getElementById("all-families").click();
seen.all = [names(), runs()];
seen.errors = errors;
document.body.innerHTML = "";
const answer = document.createElement("pre");
answer.id = "seen";
answer.textContent = JSON.stringify(seen);
document.body.append(answer);
"""


@pytest.fixture(scope="module")
def seen(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the page showed after each of the clicks."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is here: install Debian's package chromium")
    folder = tmp_path_factory.mktemp("browser")
    text = (drawn / "index.html").read_text()
    first = "<script>const errors = []; onerror = (message) => { errors.push(message); };</script>"
    text = text.replace("<head>", f"<head>{first}", 1)
    text = text.replace("</body>", f"<script>{{{CLICKS}}}</script></body>")
    (folder / "page.html").write_text(text)
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={folder / 'profile'}", "--dump-dom",
               (folder / "page.html").as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(unescape(found[1]))


@pytest.fixture(scope="module")
def first_table(drawn: Path) -> dict[str, float | None]:
    """{method: its W2A2 mean} of the first main table; full precision has its own mean."""
    rows = read_table(drawn / "table_main.csv")
    rows = [row for row in rows if row["arch"] == rows[0]["arch"]]
    return {
        row["method"]: row["top1_mean"]
        for row in rows
        if row["method"] == "fp" or (row["w_bits"], row["a_bits"]) == (2, 2)
    }


def grouped(means: dict[str, float | None], families: list[str], **order) -> list[str]:
    """The rows of a table in groups, each under its family: labels in the order of the means."""
    rows = []
    for family in families:
        mine = [name for name in means if method_family(name) == family]
        mine = sorted(mine, key=means.__getitem__, **order) if order else mine
        rows += [family.capitalize(), *map(method_label, mine)]
    return rows


def test_every_family_is_there_at_first(seen: dict, drawn: Path, first_table: dict):
    assert seen["errors"] == []
    assert seen["boxes"] == FAMILIES
    assert seen["start"] == grouped(first_table, FAMILIES)
    total = len(read_table(drawn / "results.csv"))
    assert seen["runs"] == {
        "families": seen["runs"]["families"], "count": total, "said": f"{total} of {total} runs",
    }  # fmt: skip
    assert set(seen["runs"]["families"]) == set(FAMILIES)


def test_a_sorted_table_keeps_its_families_apart(seen: dict, first_table: dict):
    assert seen["order"] == "descending"
    assert seen["sorted"] == grouped(first_table, FAMILIES, reverse=True)
    assert seen["reversed_order"] == "ascending"
    assert seen["reversed"] == grouped(first_table, FAMILIES, reverse=False)


def test_without_groups_the_whole_table_is_sorted(seen: dict, first_table: dict):
    """The sorting that was chosen before holds; a column sorted later is the only one marked."""
    ranked = sorted(first_table, key=first_table.__getitem__)
    assert seen["ungrouped"] == list(map(method_label, ranked))
    assert sorted(seen["by_name"], key=str.lower) == seen["by_name"]
    assert set(seen["by_name"]) == set(map(method_label, first_table))
    assert seen["marked"] == 1
    labels = grouped(first_table, FAMILIES)
    assert set(seen["grouped_by_name"]) == set(labels)
    heads = [name for name in seen["grouped_by_name"] if name.lower() in FAMILIES]
    assert [name.lower() for name in heads if name != method_label("fp")] == FAMILIES[1:]


def test_a_family_can_be_left_out_of_every_table(seen: dict, drawn: Path, first_table: dict):
    rest = [family for family in FAMILIES if family != "learned bases"]
    assert set(seen["without_bases"]) == set(grouped(first_table, rest))
    assert seen["sorted_without_bases"] == grouped(first_table, rest, reverse=True)
    results = read_table(drawn / "results.csv")
    shown = [row for row in results if method_family(row["method"]) != "learned bases"]
    count = {"count": len(shown), "said": f"{len(shown)} of {len(results)} runs"}
    assert seen["runs_without_bases"].items() >= count.items()
    assert set(seen["runs_without_bases"]["families"]) == set(rest)


def test_the_words_and_the_families_choose_together(seen: dict, drawn: Path):
    results = read_table(drawn / "results.csv")
    bases = [row for row in results if method_family(row["method"]) == "learned bases"]
    typed = [r for r in results if (r["arch"], r["w_bits"], r["a_bits"]) == ("resnet20", 2, 2)]
    assert seen["typed"]["count"] == len([row for row in typed if row not in bases]) > 0
    assert seen["hidden_family_typed"]["count"] == 0
    assert seen["family_typed"]["count"] == len(bases) > 0
    assert seen["family_typed"]["families"] == ["learned bases"]


def test_all_and_none(seen: dict, first_table: dict):
    assert seen["none"][0] == [] and seen["none"][1]["count"] == 0
    assert seen["only_direct"][0] == grouped(first_table, ["direct"], reverse=True)
    assert seen["only_direct"][1]["families"] == ["direct"]
    assert seen["all"][0] == seen["sorted"]
    assert seen["all"][1]["count"] == seen["runs"]["count"]
