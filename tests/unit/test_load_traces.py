import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from themis_triton.core.errors import SettingsError
from themis_triton.load.shapes import SHAPES
from themis_triton.load.traces import MAX_ARRIVALS, Trace, TraceOptions, arrivals, load_trace
from themis_triton.load.twitter import PAPER_TRACE_FILE, TRACES_VARIABLE, twitter_for


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shipped_shape_is_the_same_for_the_same_seed(name: str) -> None:
    first, again = (load_trace(TraceOptions(name), seed=3) for _ in range(2))
    assert first.rates_rps.tolist() == again.rates_rps.tolist()
    assert arrivals(first, 3).tolist() == arrivals(again, 3).tolist()
    assert arrivals(first, 3).tolist() != arrivals(first, 4).tolist()


def test_the_noise_depends_on_the_seed() -> None:
    assert load_trace(TraceOptions("surge"), seed=1).rates_rps.tolist() != load_trace(TraceOptions("surge"), seed=2).rates_rps.tolist()


@pytest.mark.parametrize("duration_s", [60, 120, 240])
@pytest.mark.parametrize("seed", range(5))
def test_the_surge_rises_five_times_and_ends_in_a_quiet_tail(duration_s: int, seed: int) -> None:
    rates = load_trace(TraceOptions("surge", duration_s=duration_s), seed).rates_rps
    assert rates.size == duration_s
    assert np.mean(rates[: duration_s // 10]) == pytest.approx(30, rel=0.1)
    plateau = rates[int(0.27 * duration_s) : int(0.54 * duration_s)]
    assert 142 < np.mean(plateau) < 162
    assert rates.max() < 170
    assert np.all(rates[int(0.67 * duration_s) :] < 36)


def test_the_surge_of_two_minutes_is_quiet_for_at_least_30_s_at_its_end() -> None:
    assert np.all(load_trace(TraceOptions("surge"), seed=0).rates_rps[-30:] < 36)


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_stretches_with_the_duration(name: str) -> None:
    assert load_trace(TraceOptions(name, duration_s=37)).duration_s == 37


def test_arrivals_are_poisson_within_each_second() -> None:
    seconds = 20_000
    times = arrivals(Trace("flat", np.full(seconds, 40.0)), seed=7)
    counts = np.bincount(times.astype(np.int64), minlength=seconds)
    assert counts.mean() == pytest.approx(40.0, rel=0.005)
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.04)
    gaps = np.diff(times)
    assert np.all(gaps >= 0.0)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.02)
    assert np.mean(times % 1.0) == pytest.approx(0.5, abs=0.01)


def test_arrivals_follow_the_rate_and_the_scale() -> None:
    trace = Trace("step", np.array([10.0] * 500 + [50.0] * 500))
    times = arrivals(trace, seed=1, scale=2.0)
    assert np.count_nonzero(times < 500) == pytest.approx(10_000, rel=0.05)
    assert np.count_nonzero(times >= 500) == pytest.approx(50_000, rel=0.03)


def test_a_rate_of_zero_has_no_arrivals() -> None:
    times = arrivals(Trace("gap", np.array([100.0, 0.0, 100.0])), seed=1)
    assert not np.any((times >= 1.0) & (times < 2.0))


def test_a_constant_rate() -> None:
    trace = load_trace(TraceOptions(rate_rps=12.5, duration_s=8))
    assert trace.rates_rps.tolist() == [12.5] * 8


@pytest.mark.parametrize(
    "text",
    [
        "rps\n3\n4\n5\n",
        "3\n4\n5\n",
        "time,rps\n0,3\n1,4\n2,5\n",
        "\ufeffTime,RATE\n10,3\n11,4\n12,5\n",
        "speed\n3\n4\n5\n",
        "3\n\n4\n5\n\n",
    ],
)
def test_csv_of_rates(tmp_path: Path, text: str) -> None:
    trace = load_trace(TraceOptions(write(tmp_path / "t.csv", text)))
    assert trace.rates_rps.tolist() == [3.0, 4.0, 5.0]
    assert trace.times_s is None


@pytest.mark.parametrize(
    "text",
    [
        "TIMESTAMP,Tokens\n2023-11-16 18:17:03.9799600,1\n2023-11-16 18:17:04.4799600,2\n2023-11-16 18:17:06.2299600,3\n",
        "2023-11-16T18:17:06.25Z\n2023-11-16T18:17:04.000Z\n2023-11-16T18:17:04.500Z\n",
        "arrival_s\n100.0\n100.5\n102.25\n",
    ],
)
def test_csv_of_time_stamps_gives_just_these_arrivals(tmp_path: Path, text: str) -> None:
    trace = load_trace(TraceOptions(write(tmp_path / "t.csv", text)))
    assert trace.rates_rps.tolist() == [2.0, 0.0, 1.0]
    assert arrivals(trace, seed=9) == pytest.approx([0.0, 0.5, 2.25], abs=1e-5)


def test_time_stamps_can_be_thinned_and_multiplied(tmp_path: Path) -> None:
    times = np.sort(np.random.default_rng(1).random(4000) * 100.0)
    source = write(tmp_path / "t.csv", "time\n" + "\n".join(f"{t:.6f}" for t in times))
    thinned = load_trace(TraceOptions(source, scale=0.25), seed=2)
    multiplied = load_trace(TraceOptions(source, scale=2.5), seed=2)
    assert arrivals(thinned, 2).size == pytest.approx(1000, rel=0.1)
    assert set(arrivals(thinned, 2)) <= set(times.round(6) - times[0].round(6))
    assert arrivals(multiplied, 2).size == pytest.approx(10_000, rel=0.03)
    assert np.all(np.diff(arrivals(multiplied, 2)) >= 0.0)
    assert arrivals(multiplied, 2).max() < multiplied.duration_s
    assert arrivals(multiplied, 2).tolist() == arrivals(load_trace(TraceOptions(source, scale=2.5), seed=2), 2).tolist()


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_numpy_files(tmp_path: Path, suffix: str) -> None:
    path, rates = tmp_path / f"t{suffix}", np.array([5, 6, 7], dtype=np.uint16)
    np.savez(path, rps=rates, other=rates) if suffix == ".npz" else np.save(path, rates)
    assert load_trace(TraceOptions(str(path))).rates_rps.tolist() == [5.0, 6.0, 7.0]


def test_slices_scale_and_duration(tmp_path: Path) -> None:
    source = write(tmp_path / "t.csv", "rps\n" + "\n".join(str(n) for n in range(100)))
    assert load_trace(TraceOptions(source, from_s=10, to_s=13, scale=2.0)).rates_rps.tolist() == [20.0, 22.0, 24.0]
    assert load_trace(TraceOptions(source, from_s=10, duration_s=2)).rates_rps.tolist() == [10.0, 11.0]
    assert load_trace(TraceOptions(source, from_s=98, to_s=500)).rates_rps.tolist() == [98.0, 99.0]


def test_time_stamps_are_sliced_like_rates(tmp_path: Path) -> None:
    source = write(tmp_path / "t.csv", "ts\n0\n1.5\n1.75\n3\n")
    trace = load_trace(TraceOptions(source, from_s=1, to_s=3))
    assert arrivals(trace, 0).tolist() == [0.5, 0.75]
    assert trace.rates_rps.tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    ("name", "content", "result"),
    [
        ("t.csv", b"", "empty"),
        ("t.csv", b"rps\n", "a header and no rows"),
        ("t.csv", b"rps\n1\nfast\n", "line 3: 'fast' is invalid"),
        ("t.csv", b"1\n-2\n", "the rate -2.0 of second 1 is invalid"),
        ("t.csv", b"1\nnan\n", "the rate nan of second 1 is invalid"),
        ("t.csv", b"1,2\n3,4\n", "2 columns and no header"),
        ("t.csv", b"city,people\nBonn,3\n", "columns city, people"),
        ("t.csv", b"time,rps\n0,1\n5,2\n", "not one second apart"),
        ("t.csv", b"timestamp\nyesterday\n", "line 2: 'yesterday' is invalid"),
        ("t.csv", b"0\n0\n", "no request"),
        ("t.csv", b"\n".join(b"%d.5" % second for second in range(20)), "20 strictly rising numbers without a header"),
        ("t.csv", b"\xff\xfe\xfa", "UTF-8"),
        ("t.npy", b"no array", "not a NumPy file"),
        ("t.npz", b"PK no archive", "not a NumPy file"),
        ("t.json", b"[1]", "the file type '.json' is invalid"),
    ],
)
def test_bad_files_are_named_with_what_was_found(tmp_path: Path, name: str, content: bytes, result: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load_trace(TraceOptions(str(path)))
    assert result in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "result"),
    [({"a": np.ones(2), "b": np.ones(2)}, "arrays a, b"), ({"rps": np.ones((2, 2))}, "shape (2, 2)"), ({"rps": np.ones(0)}, "empty")],
)
def test_bad_arrays(tmp_path: Path, arrays: dict[str, NDArray[np.float64]], result: str) -> None:
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(SettingsError) as caught:
        load_trace(TraceOptions(str(tmp_path / "t.npz")))
    assert result in str(caught.value)


@pytest.mark.parametrize("stamps", ["0\n1e13", "1764115200000\n1764115201000"])
def test_stamps_that_span_years_or_are_milliseconds_are_refused(tmp_path: Path, stamps: str) -> None:
    (tmp_path / "t.csv").write_text(f"arrival_s\n{stamps}\n")
    with pytest.raises(SettingsError, match=r"t\.csv: the time stamps .* are invalid: .* divide milliseconds by 1000"):
        load_trace(TraceOptions(str(tmp_path / "t.csv")))


def test_many_copies_of_time_stamps_are_refused_before_they_are_made(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s\n0\n1.5\n")
    with pytest.raises(SettingsError, match="too many requests: expected at most 10,000,000"):
        load_trace(TraceOptions(str(tmp_path / "t.csv"), scale=1e12))


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez_compressed(path, rps=np.arange(1000.0))
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"t\.npz"):
        load_trace(TraceOptions(str(path)))


def test_a_folder_is_no_trace(tmp_path: Path) -> None:
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(SettingsError, match="cannot read the trace file"):
        load_trace(TraceOptions(str(tmp_path / "t.csv")))


@pytest.mark.parametrize(
    ("options", "result"),
    [
        (TraceOptions("nowhere.csv"), "--trace: nowhere.csv is neither a file nor a known trace"),
        (TraceOptions("surge", from_s=200), "--from 200"),
        (TraceOptions("surge", from_s=-1), "--from: -1 is invalid"),
        (TraceOptions("surge", from_s=5, to_s=5), "--to 5"),
        (TraceOptions("surge", scale=0.0), "--scale: 0.0 is invalid"),
        (TraceOptions("surge", scale=float("nan")), "--scale: nan is invalid"),
        (TraceOptions("surge", duration_s=0), "--duration: 0 is invalid"),
        (TraceOptions("surge", duration_s=10**12), "--duration: 1000000000000 is invalid"),
        (TraceOptions("surge", from_s=10**12), "--from: 1000000000000 is invalid"),
        (TraceOptions(rate_rps=1.0, to_s=10**12), "--to: 1000000000000 is invalid"),
        (TraceOptions("surge", scale=1e12), "a smaller --scale"),
        (TraceOptions(rate_rps=-1.0), "--rate: -1.0 is invalid"),
        (TraceOptions("twitter-paper-audio"), "twitter-paper-audio is invalid: expected"),
    ],
)
def test_bad_options_name_the_flag(options: TraceOptions, result: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_trace(options)
    assert result in str(caught.value)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="surge, diurnal, flash, steady, twitter-paper"):
        load_trace(TraceOptions("surgee"))


def test_a_trace_too_long_to_send_is_refused() -> None:
    with pytest.raises(SettingsError, match="--from"):
        arrivals(Trace("long", np.full(10, MAX_ARRIVALS / 5)), seed=0)


def test_the_papers_trace_needs_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(TRACES_VARIABLE, raising=False)
    with pytest.raises(SettingsError, match=TRACES_VARIABLE):
        load_trace(TraceOptions("twitter-paper"))
    monkeypatch.setenv(TRACES_VARIABLE, str(tmp_path))
    with pytest.raises(SettingsError, match="No such file"):
        load_trace(TraceOptions("twitter-paper"))


def test_any_window_of_the_stream_is_scaled_as_the_papers_slice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(TRACES_VARIABLE, str(tmp_path))
    np.savez(tmp_path / PAPER_TRACE_FILE, rps=np.arange(1000, dtype=np.uint16))
    video, nlp = (load_trace(TraceOptions(name)) for name in ("twitter@100", "twitter@100-nlp"))
    assert (video.name, nlp.name, video.duration_s) == ("twitter@100-video", "twitter@100-nlp", 660)
    assert video.rates_rps[[0, 659]].tolist() == [67.0, 506.0]
    assert nlp.rates_rps[0] == round(100 / (2.3 * 1.5))
    assert load_trace(TraceOptions("twitter@0")).rates_rps[0] == 1.0
    assert twitter_for("twitter@100", "nlp") == "twitter@100-nlp"
    assert [twitter_for(name, "nlp") for name in ("twitter-paper-video", "surge")] == ["twitter-paper-video", "surge"]
    assert twitter_for("twitter-paper", "ocr") == "twitter-paper"
    for name, message in (
        ("twitter@341", "end at second 1001"),
        ("twitter@noon", "twitter@noon is invalid: expected"),
        ("twitter@1-audio", "twitter@1-audio is invalid"),
    ):
        with pytest.raises(SettingsError, match=message):
            load_trace(TraceOptions(name))


@pytest.mark.skipif(TRACES_VARIABLE not in os.environ, reason=f"{TRACES_VARIABLE} is not set: the Twitter trace is not on this machine")
@pytest.mark.parametrize(("name", "peak_rps"), [("twitter-paper", 183), ("twitter-paper-sentiment", 107), ("twitter-paper-nlp", 79)])
def test_the_papers_slices(name: str, peak_rps: int) -> None:
    trace = load_trace(TraceOptions(name))
    assert trace.duration_s == 660
    assert trace.rates_rps.max() == pytest.approx(peak_rps, abs=1)
    assert trace.rates_rps.min() >= 1
    if name == "twitter-paper":
        assert trace.rates_rps[[0, 20, 60, 100, 120, 160, 200]].tolist() == [31, 29, 69, 131, 150, 146, 170]
