"""The benchmarks measure what they say; no test depends on speed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import baselines
import benchmarks.__main__ as bench
from baselines.dorefa import DoReFaWeight
from benchmarks import agreement, avx2, document, gpu, peers, quantizers, steps, timing
from benchmarks.pages import evidence
from benchmarks.steps import CORE, peak_bytes
from lowbit_core.conversion.layers import calibrate
from lowbit_core.conversion.policy import QuantPolicy
from lowbit_core.conversion.swap import convert
from lowbit_core.kernels.fused import set_compile
from lowbit_core.runtime.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _compile_off():
    yield
    set_compile(False)


def test_ratios_are_taken_round_by_round():
    rows = timing.ratios({"base": [1.0, 2.0, 4.0], "twice": [2.0, 4.0, 8.0]}, "base")
    assert rows["twice"]["ratio"] == rows["twice"]["ratio_q1"] == rows["twice"]["ratio_q3"] == 2
    assert rows["base"]["ratio"] == 1 and rows["twice"]["ms"] == 4000
    assert timing.ratios({"base": [2.0], "half": [1.0]}, "base")["half"]["ratio"] == 0.5
    two = timing.ratios({"base": [1.0, 1.0], "other": [1.0, 3.0]}, "base")["other"]
    assert 1 <= two["ratio_q1"] < two["ratio"] == 2 < two["ratio_q3"] <= 3


@pytest.mark.parametrize(
    ("words", "held"), (({"avx2"}, False), ({"avx2", "avx512f"}, True), ({"sse4_2"}, None))
)
def test_only_a_processor_with_avx512_is_held_to_avx2(words, held, monkeypatch):
    for name in avx2.LIMITS:
        monkeypatch.setenv(name, "")  # so that it is set back
    monkeypatch.setattr(avx2, "processor_words", lambda: words)
    if held is None:
        with pytest.raises(InputError, match="this processor has no AVX2"):
            avx2.hold_to_avx2()
    else:
        avx2.hold_to_avx2()
        assert avx2.held() is held


def test_callables_take_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = timing.timed(calls, rounds=2, inner=1)
    assert order == list("aabb") + list("abab")
    assert {len(each) for each in seconds.values()} == {2}
    order.clear()
    timing.timed(calls, rounds=1, inner=2, warm=1)
    assert order == list("aabb") + list("aaabbb")


@pytest.mark.parametrize("bits", quantizers.BITS)
def test_quantizer_rows_name_every_quantizer_once(bits, monkeypatch):
    monkeypatch.setattr(quantizers, "set_compile", lambda _: False)
    rows = quantizers.activation_rows((4, 8, 6, 6), bits, rounds=1)
    rows += quantizers.weight_rows((8, 4, 3, 3), bits, rounds=1)
    names = [(row["kind"], row["what"]) for row in rows]
    assert len(names) == len(set(names))
    for label in quantizers.ACTIVATIONS.values():
        assert {("activation", label), ("activation", f"{label}, eager")} <= set(names)
    assert all(row["ms"] > 0 and row["ratio"] > 0 for row in rows)


def test_a_peer_that_cannot_be_imported_is_left_out_and_named_once(monkeypatch, capsys):
    monkeypatch.setitem(peers.MODULES, "brevitas", "no_such_module")
    peers.find_peer.cache_clear()
    assert "brevitas" not in peers.peers_found(2) and "brevitas" not in peers.peers_found(2)
    assert capsys.readouterr().err.count("brevitas: its rows are left out") == 1
    peers.find_peer.cache_clear()


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_quantizes_to_at_most_as_many_values_as_its_bits_allow(name):
    pytest.importorskip(name)
    peer = peers.PEERS[name]
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    for bits in peers.WEIGHT_BITS:
        for shape in ((8, 4, 3, 3), (8, 4)):
            weight = peer.weight(torch.randn(shape), bits)
            used = weight()
            used.sum().backward()
            assert used.shape == shape and torch.isfinite(used).all()
            assert max(row.unique().numel() for row in used) <= 2**bits
            assert all(p.grad is not None for p in weight.parameters())
        for signed in (False, True):
            activation = peer.activation(bits, signed).train()
            y = activation(x)
            assert y.shape == x.shape and y.unique().numel() <= 2**bits
            assert signed == (y.min() < 0) and y.max() > 0
        relu, y = peer.activation(bits, False).train()(x, also_relu=True)
        assert torch.equal(relu, x.relu()) and y.shape == x.shape


def test_brevitas_is_timed_with_its_learned_scale():
    pytest.importorskip("brevitas")
    peer = quantizers._peer_activations(2)["Brevitas QuantReLU"]
    x = torch.rand(2, 3, 4, 4)
    for _ in range(2):  # the warm-up of `timed`: its scale no longer follows the data afterwards
        peer(x)
    assert peer(10 * x).max() == peer(x).max() > 0


def test_steps_of_the_peers_are_rows_beside_the_methods(monkeypatch):
    for name in peers.PEERS:
        pytest.importorskip(name)
    tiny = steps.Network("resnet20", {"width": 8}, batch=2, side=8)
    monkeypatch.setattr(steps, "NETWORKS", {"resnet20": tiny})
    monkeypatch.setattr(steps, "METHODS", ("fp",))
    rows = list(steps.measure(["resnet20"], 1, "off", precisions=["fp32"]))
    assert [row["method"] for row in rows] == ["fp", *peers.PEERS]
    assert all(row["ratio"] > 0 and row["peak_ratio"] > 0 for row in rows)


def test_peak_memory_is_that_of_the_tensors_held_at_once():
    def two_then_one():
        a = torch.empty(1000, 256)
        b = torch.empty(1000, 256)
        del a, b
        return torch.empty(1000, 256)

    assert peak_bytes(two_then_one) == pytest.approx(2 * 4 * 256_000, rel=0.01)


def test_the_profiler_prints_nothing_between_the_tables():
    code = (
        "import torch; from benchmarks.steps import peak_bytes; held = [torch.ones(9)];"
        "peak_bytes(held.clear)"  # frees what was there before, of which the allocator would warn
    )
    command = [sys.executable, "-c", f"import benchmarks; {code}"]  # as `python -m benchmarks` does
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("fast", (False, True))
def test_steps_are_measured_in_bfloat16_only_where_the_processor_computes_it(
    fast, monkeypatch, capsys
):
    tiny = steps.Network("resnet20", {"width": 8}, batch=2, side=8)
    monkeypatch.setattr(steps, "NETWORKS", {"resnet20": tiny})
    monkeypatch.setattr(steps, "METHODS", ("fp", "dorefa", "adabin"))
    monkeypatch.setattr(steps, "peers_found", lambda bits: [])
    monkeypatch.setattr(steps, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(steps, "computes_bfloat16", lambda: fast)
    rows = list(steps.measure(["resnet20"], rounds=1, compile="off"))
    names = ("method", "w_bits", "a_bits", "precision")
    expected = [("fp", 32, 32), ("dorefa", 2, 2), ("adabin", 1, 1)]  # AdaBin offers no other width
    types = ("fp32", "bf16") if fast else ("fp32",)
    assert [tuple(map(row.get, names)) for row in rows] == [
        (*row, precision) for precision in types for row in expected
    ]
    assert all(row["ratio"] == 1 for row in rows if row["method"] == "fp")
    assert capsys.readouterr().err.count("left out") == (not fast)


def test_a_method_is_measured_at_the_nearest_width_that_it_offers():
    network = steps.NETWORKS["resnet20"]
    asked = {(method, bits): steps.bits_of(method, steps.Setting(network, bits, bits))
             for method in ("fp", "dorefa", "ttq", "adabin") for bits in (1, 2, 4)}  # fmt: skip
    assert {asked["fp", bits] for bits in (1, 2, 4)} == {(32, 32)}
    assert [asked["dorefa", bits] for bits in (1, 2, 4)] == [(1, 1), (2, 2), (4, 4)]
    assert {asked["ttq", bits] for bits in (1, 2, 4)} == {(2, 2)}
    assert {asked["adabin", bits] for bits in (1, 2, 4)} == {(1, 1)}
    assert steps.bits_of("adabin", steps.Setting(network, 1, 4)) == (1, 4)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A folder of committed figures, with those of two networks' steps in it."""
    bits = {"fp": 32, "direct": 2, "adabin": 1, "brevitas": 2}
    rows = [
        {"arch": arch, "method": method, "w_bits": bits[method], "a_bits": bits[method],
         "precision": "fp32", "ratio": ratio, "peak_ratio": 1.5}
        for arch, ratios in (("resnet20", (1, 1.084, 1.08, 3)), ("alexnet", (1, 1.2, 1.3, 4)))
        for method, ratio in zip(bits, ratios, strict=True)
    ]  # fmt: skip
    about = {"hardware": "a processor", "instruction_set": "AVX2", "kernel_lanes": 8, "threads": 2}
    about |= {"versions": {"torch": "2.13.0"}, "date": "2026-01-02", "commit": "abc"}
    pd.DataFrame(rows).to_csv(tmp_path / "steps.csv", index=False)
    (tmp_path / "steps.json").write_text(json.dumps(about))
    monkeypatch.setattr(document, "MEASURED", tmp_path)
    monkeypatch.setattr(document, "ROOT", tmp_path)
    return tmp_path


def region(name, table=""):
    return f"before\n<!-- table: {name} -->\n{table}<!-- end of table -->\nafter"


def test_a_table_of_the_page_has_the_figures_of_the_csv_file(measured):
    lines = document.page(region("steps")).splitlines()
    assert lines[0] == "before" and lines[-1] == "after"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:-2]]
    assert cells[2] == ["Direct + channel-aware", "fp32", "1.08", "1.20", "1.50", "1.50"]
    assert [row[0] for row in cells[3:]] == ["AdaBin (W1A1)", "Brevitas"]
    assert cells[4][2:4] == ["3.00", "4.00"]
    machine = document.page(region("machines"))
    assert "a processor" in machine and "2026-01-02" in machine
    assert document.page(document.page(region("steps"))) == document.page(region("steps"))


@pytest.mark.parametrize(
    ("table", "kernels", "hardware", "kept"),
    [
        ("deploy", "onnxruntime\nmatrices (AMX)", "Intel Xeon", "deploy_amx"),
        ("deploy", "onnxruntime\npopcount (AVX-512)", "Intel Xeon", "deploy_intel"),
        ("deploy", "onnxruntime\npopcount (AVX-512)", "AMD EPYC", "deploy"),
        ("deploy_avx2", "onnxruntime\ntables (AVX2)", "AMD EPYC", "deploy_avx2"),
        ("deploy_avx2", "tables (AVX2)", "AMD EPYC", "deploy_avx2_held"),
    ],
)
def test_exported_networks_on_other_processors_are_kept_beside_the_others(
    table, kernels, hardware, kept, measured, tmp_path, monkeypatch
):
    new = tmp_path / "new"
    new.mkdir()
    (new / f"{table}.csv").write_text(f"kernel\n{kernels}\n")
    about = {"complete": True, "settings": {}, "hardware": hardware}
    (new / f"{table}.json").write_text(json.dumps(about))
    monkeypatch.setattr(document, "PAGES", ())
    monkeypatch.setattr(document, "draw_speed", lambda: None)
    monkeypatch.setattr(sys, "argv", ["document", str(new)])
    document.main()
    assert {path.stem for path in measured.glob("deploy*")} == {kept}


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"complete": False, "settings": {}}, "steps.csv is of a run that was stopped"),
        ({"complete": True, "settings": {"quick": True}}, "steps.csv was measured with quick True"),
    ],
)
def test_figures_of_a_try_replace_none(about, reason, measured, tmp_path, monkeypatch):
    new, before = tmp_path / "new", (measured / "steps.csv").read_bytes()
    new.mkdir()
    (new / "steps.csv").write_text("arch\nresnet20\n")
    (new / "steps.json").write_text(json.dumps(about))
    monkeypatch.setattr(sys, "argv", ["document", str(new)])
    with pytest.raises(InputError, match=reason):
        document.main()
    assert (measured / "steps.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--only", "deploy", "--bits", "4"), "--bits is of the part steps: add --only steps"),
        (("--avx2", "--precision", "bf16"), "--avx2 --precision bf16"),
    ],
)
def test_an_option_of_the_benchmarks_without_effect_is_refused(words, reason, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    with pytest.raises(InputError, match=reason):
        bench.main()


def cells_of(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_the_table_of_aims_counts_the_methods_and_names_those_that_miss_it(measured):
    made = document.steps_aims()
    assert cells_of(made) == [
        ["float32", "ResNet-20", "1.08", "1 of 2", "1.08", "1.08", "Direct + channel-aware 1.08"],
        ["float32", "AlexNet (BN)", "1.15", "0 of 2", "1.20", "1.30", "all"],
    ]
    assert "Brevitas" not in made and "bfloat16" not in made  # no peer; nothing is measured


def test_the_table_of_costs_has_every_method_and_the_bits_that_it_was_measured_at(measured):
    rows = {row[0]: row[1:] for row in cells_of(document.step_cost())}
    listed = {f"`{name}`" for name, one in baselines.METHODS.items() if not one.ablation}
    assert rows.keys() == listed - {"`fp`"}
    assert rows["`direct`"] == ["W2A2", "1.08", ""] and rows["`adabin`"] == ["W1A1", "1.08", ""]
    assert rows["`lsq`"] == ["", "", ""]  # not measured


def test_the_table_of_starts_shows_their_median(measured):
    text = region("startup", "old\n")
    assert document.page(text) == text  # no startup.csv yet
    rows = [{"job": "one", "seconds": seconds} for seconds in (6.04, 9.0, 6.51)]
    pd.DataFrame(rows).to_csv(measured / "startup.csv", index=False)
    assert cells_of(document.startup()) == [["`one`", "3", "6.5", "6.0", "9.0", "8"]]


def test_a_table_without_figures_stays_and_the_next_one_is_made(measured, capsys):
    text = region("loaders", "old\n") + "\n" + region("steps")
    made = document.page(text)
    assert region("loaders", "old\n") in made and "Brevitas" in made
    assert "table loaders stays as it is" in capsys.readouterr().err


def test_precisions_are_compared_in_pairs_and_each_start_counts_once(tmp_path, monkeypatch):
    def run(method, precision, seed, top1, role="run"):
        config = {"method": method, "seed": seed, "pretrained": f"start{seed}"}
        config["recipe"] = {"precision": precision}
        return {"role": role, "config": config, "final": {"status": "done", "val_top1": top1}}

    runs = [run("fp", "fp32", seed, None, "checkpoint") for seed in range(3)]
    for seed in range(3):
        for method, change in (("fp", 9.0), ("direct", 0.2 + seed), ("pact", 0.4 - 0.9 * seed)):
            runs.append(run(method, "fp32", seed, 50.0))
            runs.append(run(method, "bf16", seed, 50.0 + change))
    runs.append(run("pact", "fp32", 3, 90.0))  # without its pair
    runs += [run("pact", precision, 4, 60.0) for precision in ("fp32", "bf16")]  # direct lacks it
    (tmp_path / "precision" / "record").mkdir(parents=True)
    monkeypatch.setattr(evidence, "REFERENCE", tmp_path)
    monkeypatch.setattr(evidence.Record, "runs", runs)
    lines = evidence.precision().splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[:4] for row in cells[:3]] == [
        ["Full precision", "50.00", "59.00", "3"],
        ["Direct + channel-aware", "50.00", "51.20", "3"],
        ["PACT", "52.50", "52.12", "4"],
    ]
    # The two methods change a start by 0.3, 0.35 and 0.4: error 0.05 / sqrt(3), t(2) = 4.303. Full
    # precision is no part of it.
    assert cells[3] == ["quantized methods", "", "", "3", "+0.35 [+0.23, +0.47]", "leads"]


def test_the_decomposition_has_the_starts_that_all_bits_have(monkeypatch):
    def run(method, bits, seed, top1):
        w_bits, a_bits = bits
        return {
            "method": method, "w_bits": w_bits, "a_bits": a_bits, "seed": seed, "top1": top1,
            "pretrained": f"start{seed}", "status": "done", "options": None, "role": "run",
        }  # fmt: skip

    full = [run("fp", (32, 32), seed, 60.0 + seed) for seed in range(5)]
    runs = [
        run("direct", bits, seed, 60.0 + seed - loss - 0.1 * (seed == 1))
        for loss, bits in enumerate(evidence.DECOMPOSITION, 1)
        for seed in range(5 if bits == (2, 2) else 3)
    ]
    monkeypatch.setattr(evidence, "_table", lambda *_: [*full, *runs])
    cells = cells_of(evidence.claims_decomposition())
    assert [row[0] for row in cells] == ["W2A32", "W32A2", "W2A4", "W4A2", "W2A2"]
    # The losses of the first row are 1, 1.1 and 1: error 0.0577 / sqrt(3), t(2) = 4.303.
    assert cells[0][2:] == ["−1.03 [−1.18, −0.89]", "3"] and cells[4][3] == "3"
    fewer = [run for run in runs if (run["w_bits"], run["a_bits"]) in ((2, 32), (2, 4), (2, 2))]
    fewer = [run for run in fewer if run["a_bits"] != 4 or run["seed"]]  # two starts of W2A4
    monkeypatch.setattr(evidence, "_table", lambda *_: [*full, *fewer])
    assert [row[0] for row in cells_of(evidence.claims_decomposition())] == ["W2A32", "W2A2"]
    monkeypatch.setattr(evidence, "_table", lambda *_: [*full, *runs[12:]])
    with pytest.raises(evidence.NotMeasured, match="fewer than 3 starts"):
        evidence.claims_decomposition()


def test_a_table_that_is_not_known_is_refused(measured):
    with pytest.raises(InputError, match="'stepz'.*steps"):
        document.page(region("stepz"))


def test_the_pages_are_what_their_committed_figures_give():
    """`python -m benchmarks.document` changes nothing, and the pages have every table."""
    names = []
    for path in document.PAGES:
        text = path.read_text()
        assert document.page(text) == text
        names += [match[2] for match in document.REGION.finditer(text)]
    assert sorted(names) == sorted(document.TABLES)


def test_a_table_is_written_with_what_it_was_measured_with(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(bench.PARTS, "startup", lambda given: [{"job": "one", "seconds": 6.5}])
    monkeypatch.setattr(bench, "PEERS", {})
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "startup", "--out", str(tmp_path)])
    bench.main()
    assert (tmp_path / "startup.csv").read_text() == "job,seconds\none,6.5\n"
    about = json.loads((tmp_path / "startup.json").read_text())
    assert about["instruction_set"] and about["hardware"] and about["threads"] >= 1
    assert about["versions"]["torch"] == torch.__version__
    assert about["date"].count("-") == 2 and "startup" in capsys.readouterr().out


def test_values_agree_up_to_a_share_of_the_largest():
    expected = torch.tensor([0.0, 1.0, 2.0, 4.0])
    found = torch.tensor([0.003, 1.0, torch.nan, 4.005])
    assert agreement.apart(found, expected, 1e-3) == 0.5
    assert agreement.apart(expected, expected, 0) == 0


def test_a_device_that_computes_wrongly_disagrees(monkeypatch):
    case = ("dorefa", 2, None, torch.float32)
    arguments = (case, torch.device("cpu"), True, False)
    assert set(agreement.disagreement(*arguments).values()) == {0}
    right = DoReFaWeight.forward
    monkeypatch.setattr(DoReFaWeight, "forward", lambda self: 1.01 * right(self))
    shares = agreement.disagreement(*arguments)
    assert shares["levels"] == 1 and shares["gradients"] > 0.9 and shares["state"] == 0


WITHOUT = "import sys; sys.modules |= dict.fromkeys(('pandas', 'snakemake', 'mlflow', 'ffcv'))"


def test_first_contact_with_a_gpu_on_the_processor(tmp_path):
    """All its parts, with tiny sizes, without the packages that a GPU machine may lack."""
    out = tmp_path / "gpu.json"
    code = f"{WITHOUT}; import benchmarks.gpu; benchmarks.gpu.main()"
    command = [sys.executable, "-c", code, "--device", "cpu", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    methods = [method for method in baselines.METHODS.values() if method.weight is not None]
    quantizers = 2 * len(methods) + sum(method.offers(2) for method in methods)
    assert found["agreement"] == {"checked": quantizers * 2, "disagree": {}}
    assert found["verdicts"]["agreement"] == {"value": 0, "bar": 0, "ok": True}
    assert found["errors"] == {} and found["left_out"] == []
    assert [row["method"] for row in found["steps"]] == ["fp", "direct"]
    assert {row["precision"] for row in found["steps"]} == {"bf16"}
    assert all(row["epoch_s"] > 0 and row["peak_mb"] > 0 for row in found["steps"])
    assert found["processes"].keys() == {"1", "2"} and min(found["processes"].values()) > 0
    verdict = found["verdicts"]["resnet20, quantizers, direct"]
    assert verdict["ok"] == (verdict["value"] <= verdict["bar"])
    assert found["device"] and found["instruction_set"] and found["versions"]["torch"]


def test_no_time_for_the_gpu_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["gpu", "--minutes", "-1", "--out", str(tmp_path / "gpu.json")]
    )
    with pytest.raises(InputError, match="--minutes is -1: it must be above 0"):
        gpu.main()
    assert not (tmp_path / "gpu.json").exists()


def test_a_try_is_written_beside_the_figures_of_the_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick"])
    assert bench._arguments().out == Path("results/benchmarks/with_options")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", "steps"])
    assert bench._arguments().out == Path("results/benchmarks")


def test_a_table_that_was_stopped_does_not_pass_as_whole(tmp_path, monkeypatch):
    bench._write(tmp_path / "steps", [{"a": 1}, {"a": 2}], {"hardware": "h", "threads": 1})
    assert json.loads((tmp_path / "steps.json").read_text())["complete"]

    def stopped(*arguments, **options):
        assert not json.loads((tmp_path / "steps.json").read_text())["complete"]
        raise KeyboardInterrupt

    monkeypatch.setattr(pd.DataFrame, "to_csv", stopped)
    with pytest.raises(KeyboardInterrupt):
        bench._write(tmp_path / "steps", [{"a": 3}], {"hardware": "h", "threads": 1})
    assert (tmp_path / "steps.csv").read_text() == "a\n1\n2\n"


@pytest.mark.parametrize("method", [m for m in CORE if m != "fp"])
def test_a_quantized_step_holds_hardly_more_than_a_full_precision_one(method):
    def step(name):
        torch.manual_seed(0)
        block = (nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *block, *map(_copy, block),
                            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))  # fmt: skip
        net.signed_inputs = frozenset()
        x = torch.randn(32, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        if name != "fp":
            convert(net, QuantPolicy(baselines.method(name), 2, 2), x[:1])
            calibrate(net, x)
        return peak_bytes(lambda: net(x).sum().backward())

    # Eager quantizers hold temporaries; what lasts from forward to backward is what counts.
    # LSQ keeps its input, too, from which the gradient of its step is made.
    most = 1.9 if method == "lsq" else 1.6
    assert step(method) <= most * step("fp")


def _copy(layer):
    return type(layer)(8, 8, 3, padding=1, bias=False) if isinstance(layer, nn.Conv2d) else (
        nn.BatchNorm2d(8) if isinstance(layer, nn.BatchNorm2d) else nn.ReLU())  # fmt: skip


@pytest.fixture
def without_brevitas(monkeypatch):
    """Its import fails, as where it is not installed."""
    for name in ("brevitas", "brevitas.nn"):
        monkeypatch.setitem(sys.modules, name, None)
    peers.find_peer.cache_clear()
    yield
    peers.find_peer.cache_clear()


def test_without_brevitas_alone_the_benchmarks_go_on(without_brevitas, monkeypatch, capsys):
    tiny = steps.Network("resnet20", {"width": 8}, batch=2, side=8)
    monkeypatch.setattr(steps, "NETWORKS", {"resnet20": tiny})
    monkeypatch.setattr(steps, "METHODS", ("fp",))
    monkeypatch.setattr(quantizers, "set_compile", lambda _: False)
    others = [name for name in peers.PEERS if name != "brevitas" and peers.find_peer(name)]
    rows = list(steps.measure(["resnet20"], 1, "off", precisions=["fp32"]))
    assert [row["method"] for row in rows] == ["fp", *others]
    rows = quantizers.activation_rows((4, 8, 6, 6), 2, rounds=1)
    rows += quantizers.weight_rows((8, 4, 3, 3), 2, rounds=1)
    names = {row["what"] for row in rows}
    assert not any("Brevitas" in name for name in names)
    assert ("torchao IntxFakeQuantizer" in names) == ("torchao" in others)
    assert set(quantizers.ACTIVATIONS.values()) <= names
    said = capsys.readouterr().err.splitlines()
    assert sum("brevitas: its rows are left out" in line for line in said) == 1


FAKE_PIP = """
import sys
with open({log!r}, "a") as log:
    print(*sys.argv[1:], file=log)
sys.exit(sys.argv[-1].startswith(("openvino", "brevitas")))
"""


def test_a_peer_that_cannot_be_installed_stops_nothing(tmp_path):
    """`make bench` tries every peer, and names those that pip refuses."""
    log = tmp_path / "log"
    (tmp_path / "pip.py").write_text(FAKE_PIP.format(log=str(log)))
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "peers.py", "bench"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    calls = [line.split() for line in log.read_text().splitlines()]
    assert all(call[0] == "install" and str(ROOT / "constraints.txt") in call for call in calls)
    tried = [re.split("[<>=]", call[-1])[0] for call in calls]
    assert tried == ["brevitas", "torchao", "onnx", "onnxruntime", "qonnx", "openvino"]
    said = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert [re.split("[<>=]", name)[0] for name in said] == ["brevitas", "openvino"]
