"""The table of variants: chosen on validation data, compared in pairs."""

import re

import pytest

from workflow.results.variants import change, markdown, variant_rows

BASE = {"name": "base", "lr": 0.1, "quantizer_groups": {"levels": {"lr_scale": 0.1}}}
FASTER = BASE | {"name": "faster", "quantizer_groups": {"levels": {"lr_scale": 1}}}

SUITE = {
    "suite": "tuning",
    "experiments": [
        {"methods": ["direct", "lq_nets", "fp"], "recipe": "base"},
        {"methods": ["direct", "lq_nets"], "recipe": "faster"},
    ],
}


def runs(method: str, recipe: dict, values: list) -> list:
    return [
        {
            "role": "run",
            "config": {"dataset": "cifar100", "arch": "resnet20", **dict.fromkeys(
             ("w_bits", "a_bits"), 32 if method == "fp" else 2),
             "seed": seed, "method": method, "recipe": recipe, "pretrained": f"checkpoint-{seed}"},
            "final": {"status": "done" if value else "diverged", "val_top1": value, "top1": 99.0},
        }
        for seed, value in enumerate(values)
    ]  # fmt: skip


def test_golden_table():
    found = variant_rows(SUITE, [
        *runs("direct", BASE, [50.0, 52.0, 54.0]),
        *runs("lq_nets", BASE, [49.0, 50.0, 53.0]),
        *runs("direct", FASTER, [51.0, 54.0, 57.0]),
        *runs("lq_nets", FASTER, [52.0, 54.0, None]),
        *runs("fp", BASE, [70.0]),
    ])  # fmt: skip
    table = {(row["method"], row["recipe"]): row for row in found}
    assert list(table) == [(m, r) for m in ("direct", "lq_nets") for r in ("base", "faster")]
    assert table["direct", "base"]["val_top1_mean"] == 52.0
    assert table["direct", "base"]["val_top1_std"] == 2.0
    assert "top1_difference_mean" not in table["direct", "base"]
    faster = table["direct", "faster"]
    assert faster["change"] == "levels.lr_scale=1"
    assert faster["top1_difference_mean"] == pytest.approx(2.0)
    # Differences 1, 2, 3: error 1/sqrt(3), t(2) = 4.303.
    assert faster["top1_difference_low"] == pytest.approx(2 - 4.303 / 3**0.5, abs=1e-3)
    assert faster["p"] == pytest.approx(0.0742, abs=1e-4)
    # Holm, of two comparisons with an interval: the smaller p counts twice.
    assert faster["p_adjusted"] == pytest.approx(2 * table["lq_nets", "base"]["p"])
    assert faster["verdict"] == "undecided"
    # A rival is set against the first method by its own recipe.
    assert table["lq_nets", "base"]["top1_difference_mean"] == pytest.approx(-4 / 3)
    rival = table["lq_nets", "faster"]
    assert (rival["n"], rival["diverged"], rival["verdict"]) == (2, 1, "undecided")
    assert rival["top1_difference_mean"] == 0.5
    text = re.sub(" +", " ", markdown(found, SUITE))
    assert "99" not in text.replace("95", "")  # no test accuracy
    assert "| faster | levels.lr_scale=1 | 3 | 0 | 54.00 ± 3.00 | +2.00 [−0.48, +4.48] |" in text


def test_a_confirmation_compares_test_images():
    records = [*runs("direct", BASE, [50.0, 52.0, 54.0]), *runs("direct", FASTER, [0.5, 1.0, 1.5])]
    for record, value in zip(records, [60.0, 61.0, 62.0, 61.0, 63.0, 65.0], strict=True):
        record["final"]["top1"] = value
    confirming = SUITE | {"compare_on": "test"}
    base, faster = variant_rows(confirming, records)
    assert (base["top1_mean"], faster["top1_mean"]) == (61.0, 63.0)
    assert faster["top1_difference_mean"] == pytest.approx(2.0)
    assert "val_top1_mean" not in base
    text = markdown([base, faster], confirming)
    assert "Test top-1 in percent" in text and "63.00 ± 2.00" in re.sub(" +", " ", text)


def test_the_suite_names_the_base_whatever_comes_first_in_the_record():
    found = variant_rows(SUITE, [
        *runs("lq_nets", BASE, [49.0, 50.0, 53.0]),
        *runs("direct", FASTER, [51.0, 54.0, 57.0]),
        *runs("direct", BASE, [50.0, 52.0, 54.0]),
    ])  # fmt: skip
    assert [row["method"] for row in found if "top1_difference_mean" not in row] == ["direct"]
    assert found[1]["change"] == "levels.lr_scale=1"


def test_variants_of_a_start_that_was_trained_again_and_came_out_the_same_are_pairs():
    earlier, later = runs("direct", BASE, [50.0, 52.0, 54.0]), runs("direct", FASTER, [51.0] * 3)
    for run in later:
        run["start"] = run["config"]["pretrained"]
        run["config"]["pretrained"] += "-again"
    assert variant_rows(SUITE, earlier + later)[1]["top1_difference_mean"] == pytest.approx(-1.0)


def test_change_names_what_differs():
    assert change(BASE, BASE) == ""
    assert change(BASE | {"lr": 0.2}, BASE) == "lr=0.2"
