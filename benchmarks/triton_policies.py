"""Every policy in Triton's world, simulated: launches of 20 and 60 s, servers of one device and servers that reach further ones.

`THEMIS_TRACES=… python benchmarks/triton_policies.py` runs ten windows of days 15 and 16 that no constant was chosen on, and leaves
`results/triton-policies.json`, `.md` and a picture, which it writes anew after each policy. `--rotate` takes one pipeline for each
window in turn instead of all three, `--rise-s 240` only that long around each window's steepest rise. `--training` takes
windows of days 1 to 14; with `--change KEY=VALUE` policy themis has another constant there, for an ablation. With `--add` the runs of
policies that do not run now stay; each row tells its commit, and
the table tells where rows ran with other settings of themis.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import matplotlib as mpl
import numpy as np
from common import RESULTS, commit, versions, with_constants, write_result
from policy_cases import LEARNING, PIPELINES, WINDOWS_SEED, around_rise, fresh_surges, recurring_before
from policy_results import Settings, differences, digest, settings_of
from rich.progress import track
from tune import training_surges

from themis_triton.commands.simulate_command import chosen
from themis_triton.commands.simulated_runs import WorldFlags, run_under
from themis_triton.core.config import DeviceSlot, ThemisConfig
from themis_triton.load.traces import TraceOptions, load_trace
from themis_triton.load.twitter import WINDOW, WINDOW_S, twitter_for
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped

SLOTS = 16
COLD_STARTS_S = (20.0, 60.0)
HOLD = 3.0
"""The hold of `horizontal, held`: this multiple of the cold start."""
LEARNT = LEARNING.label
"""Policy themis that has seen the arrivals of the two weeks before each window, and knows which rises recur."""
REACHING = frozenset({"themis", LEARNT, "oracle"})
FIXED = frozenset({"vertical", "vertical-themis"})
BASELINES = ("horizontal", "horizontal, held", "vertical", "vertical-themis", "queue-time", "concurrency", "themis-paper", "oracle")
LABELS = ("themis", LEARNT, *BASELINES)


@dataclass(frozen=True, slots=True)
class Case:
    """One run. `reach`: servers may use all devices."""

    label: str
    second: int
    pipeline: str
    seed: int
    cold_start_s: float
    reach: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What a run gave."""

    requests: int
    late: int
    cost: float
    bound_cost: float
    commit: str
    settings: str = ""
    """The digest of the settings of themis, which the result has; empty where they were not recorded."""


def main() -> None:
    """Run, sum up, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", nargs="+", default=LABELS, choices=LABELS)
    parser.add_argument("--cold-starts-s", nargs="+", type=float, default=COLD_STARTS_S)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--rotate", action="store_true")
    parser.add_argument("--rise-s", type=int, default=WINDOW_S)
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--reach", nargs="+", choices=("alone", "reach"), default=("alone", "reach"))
    parser.add_argument("--change", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", default="triton-policies")
    parser.add_argument("--add", action="store_true", help="runs of the policies that do not run now stay")
    flags = parser.parse_args()
    changes = {key: float(value) for key, _, value in (change.partition("=") for change in flags.change)}
    seconds = training_surges(np.random.default_rng(WINDOWS_SEED), flags.windows, 0.0) if flags.training else alternating(flags.windows)
    cases = [case for label in flags.policies for case in cases_of(label, seconds, flags)]
    windows = [f"{WINDOW}{second}" for second in seconds]
    what = {"windows": windows, "seeds": flags.seeds, "rotate": flags.rotate, "changes": changes, "versions": versions("numba", "numpy")}
    stays, settings = kept(flags.out, flags.policies) if flags.add else ([], {})
    own = themis_settings(changes)
    key = digest(own)
    used = {name: settings[name] for name in dict.fromkeys(each.settings for _, each in stays) if name} | {key: own}
    found: list[Found] = []
    with ProcessPoolExecutor(flags.jobs, mp_context=get_context("spawn")) as pool:
        for result in track(pool.map(partial(run, changes, flags.rise_s), cases), "simulating", total=len(cases)):
            found.append(replace(result, settings=key))
            if len(found) == len(cases) or cases[len(found)].label != cases[len(found) - 1].label:
                leave(flags.out, what, used, [*stays, *zip(cases, found, strict=False)])
    print((RESULTS / f"{flags.out}.md").read_text(encoding="utf-8"))


def themis_settings(changes: dict[str, float]) -> Settings:
    """The constants of policy themis with which all pipelines run now."""
    config = load_settings(shipped("config") / "themis.yaml")
    changed = replace(config, policy=with_constants(config.policy, changes)) if changes else config
    return settings_of(dict.fromkeys(PIPELINES, changed))


def kept(name: str, labels: Sequence[str]) -> tuple[list[tuple[Case, Found]], dict[str, Settings]]:
    """The runs of the last result, without those policies, and its settings."""
    last = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    runs = [{"commit": last["commit"], "settings": ""} | run for run in last["runs"] if run["label"] not in labels]
    return [(Case(**_of(Case, run)), Found(**_of(Found, run))) for run in runs], last.get("settings", {})


def _of(kind: type[Case | Found], run: dict[str, Any]) -> dict[str, Any]:
    return {field.name: run[field.name] for field in fields(kind)}


def leave(name: str, what: dict[str, Any], settings: dict[str, Settings], runs: Sequence[tuple[Case, Found]]) -> None:
    """Write what was found so far."""
    rows = rows_of(runs)
    write_result(name, what | {"settings": settings, "rows": rows, "runs": [asdict(case) | asdict(result) for case, result in runs]})
    (RESULTS / f"{name}.md").write_text(markdown(rows, settings), encoding="utf-8")
    draw(rows, name)


def alternating(count: int) -> list[int]:
    """Fresh windows, mild and steep ones in turn."""
    mild, steep = fresh_surges()
    return [second for pair in zip(mild, steep, strict=True) for second in pair][:count]


def cases_of(label: str, seconds: Sequence[int], flags: argparse.Namespace) -> Iterator[Case]:
    """The runs of one policy: reaching servers and cold starts only where they make a difference to it."""
    colds = flags.cold_starts_s[:1] if label in FIXED else flags.cold_starts_s
    reaches = [name == "reach" for name in flags.reach] if label in REACHING else [False]
    for cold_start_s in colds:
        for reach in reaches:
            for number, second in enumerate(seconds):
                for pipeline in (PIPELINES[number % len(PIPELINES)],) if flags.rotate else PIPELINES:
                    for seed in range(flags.seeds):
                        yield Case(label, second, pipeline, seed, cold_start_s, reach)


def run(changes: dict[str, float], rise_s: int, case: Case) -> Found:
    """Simulate one case."""
    name = case.label.partition(",")[0]
    trace = around_rise(TraceOptions(twitter_for(f"{WINDOW}{case.second}", case.pipeline)), rise_s)
    config = world(case, load_trace(trace, case.seed).rates_rps.max())
    if name == "themis" and changes:
        config = replace(config, policy=with_constants(config.policy, changes))
    load = {case.pipeline: load_trace(trace, case.seed)}
    recurring = {case.pipeline: recurring_before(f"{WINDOW}{case.second}", case.pipeline, rise_s)} if case.label == LEARNT else None
    result = run_under(config, load, WorldFlags(cold_start_s=case.cold_start_s), None, (name, case.seed), recurring)
    return Found(result.requests, result.violated, result.cost, result.bound_cost, commit())


def world(case: Case, peak_rps: float) -> ThemisConfig:
    """The shipped settings of one pipeline on more slots than it needs; the vertical baseline knows the peak, as `vertical-themis` does."""
    config = chosen(load_settings(shipped("config") / "themis.yaml"), [case.pipeline])
    slots = tuple(DeviceSlot(f"cpu:{number}", f"cpu:{number}") for number in range(SLOTS))
    reach = tuple(slot.device for slot in slots) if case.reach else ()
    launch = None if config.launch is None else replace(config.launch, slots=slots, reach=reach)
    policy = replace(
        config.policy,
        vertical=replace(config.policy.vertical, planned_rps=float(peak_rps)),
        horizontal=replace(
            config.policy.horizontal,
            scale_in_stabilization_s=HOLD * case.cold_start_s
            if case.label.endswith("held")
            else config.policy.horizontal.scale_in_stabilization_s,
        ),
    )
    return replace(config, launch=launch, policy=policy)


def rows_of(runs: Sequence[tuple[Case, Found]]) -> list[dict[str, Any]]:
    """One row per cold start, policy and reach: means over the runs, with the standard error of the late share."""
    keys = dict.fromkeys((case.cold_start_s, case.label, case.reach) for case, _ in sorted(runs, key=_place))
    rows = []
    for cold_start_s, label, reach in sorted(keys, key=lambda key: key[0]):
        own = [f for c, f in runs if (c.cold_start_s, c.label, c.reach) == (cold_start_s, label, reach)]
        late = np.array([f.late / f.requests for f in own])
        rows.append(
            {
                "cold_start_s": cold_start_s,
                "policy": label,
                "reach": reach,
                "runs": len(own),
                "violations": float(late.mean()),
                "standard_error": float(late.std(ddof=1) / np.sqrt(late.size)) if late.size > 1 else None,
                "worst_run_violations": float(late.max()),
                "cost_vs_clairvoyant": sum(f.cost for f in own) / sum(f.bound_cost for f in own),
                "commit": own[0].commit,
                "settings": own[0].settings,
            }
        )
    return rows


def _place(run: tuple[Case, Found]) -> int:
    return LABELS.index(run[0].label)


def markdown(rows: Sequence[dict[str, Any]], settings: dict[str, Settings]) -> str:
    """The table, a section per cold start, and below it the settings where rows differ in them."""
    text = [
        "# Policies in Triton's world",
        "",
        (__doc__ or "").partition("\n")[0] + " Late: the mean over the runs ± its standard error. After two weeks: themis has seen the"
        " arrivals of the 14 days before each window, and knows which rises recur.",
        "",
    ]
    for cold_start_s in dict.fromkeys(row["cold_start_s"] for row in rows):
        text += [
            f"## Cold start {cold_start_s:g} s",
            "",
            "| policy | late | worst run | cost of clairvoyant | runs | commit |",
            "| --- | ---: | ---: | ---: | ---: | --- |",
        ]
        for row in rows:
            if row["cold_start_s"] == cold_start_s:
                name = row["policy"] + (", servers reach all devices" if row["reach"] else "")
                error = "" if row["standard_error"] is None else f" ± {row['standard_error']:.3%}"
                cost = row["cost_vs_clairvoyant"]
                late = f"{row['violations']:.3%}{error} | {row['worst_run_violations']:.3%}"
                text.append(f"| {name} | {late} | {cost:.3f} | {row['runs']} | {row['commit'][:12]} |")
        text.append("")
    return "\n".join([*text, *_settings_words(rows, settings)])


def _settings_words(rows: Sequence[dict[str, Any]], settings: dict[str, Settings]) -> list[str]:
    """Which policies ran with which settings of themis, where that differs."""
    groups: dict[str, dict[str, None]] = {}
    for row in rows:
        groups.setdefault(row["settings"], {})[row["policy"]] = None
    if len(groups) < 2:
        return []
    words = {name: ", ".join(each) or "as the others" for name, each in differences(settings).items()}
    return [*(f"- Settings of themis: {words.get(name, 'not recorded')}: {'; '.join(own)}." for name, own in groups.items()), ""]


def draw(rows: Sequence[dict[str, Any]], name: str) -> None:
    """Late requests over cost, a panel for each cold start."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend is chosen

    cold_starts_s = sorted({row["cold_start_s"] for row in rows})
    figure, panels = plt.subplots(1, len(cold_starts_s), figsize=(6 * len(cold_starts_s), 5), squeeze=False)
    for axes, cold_start_s in zip(panels[0], cold_starts_s, strict=True):
        for row in rows:
            if row["cold_start_s"] == cold_start_s or (row["policy"] in FIXED and row["cold_start_s"] == cold_starts_s[0]):
                label = row["policy"] + (", devices in reach" if row["reach"] else "")
                color, late = f"C{LABELS.index(row['policy'])}", 100 * max(row["violations"], 1e-5)
                axes.semilogy(row["cost_vs_clairvoyant"], late, "*" if row["reach"] else "o", color=color, markersize=9, label=label)
        axes.set(xlabel="cost of the clairvoyant's", ylabel="requests outside the SLO, %", title=f"cold start {cold_start_s:g} s")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(RESULTS / f"{name}.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
