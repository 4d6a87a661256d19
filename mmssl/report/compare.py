"""Several runs on one page: scores beside each other, what differs between them, their curves over each other."""

from __future__ import annotations

from collections.abc import Sequence

from mmssl.report import scores, sections
from mmssl.report.figures import overlays
from mmssl.report.intervals import Interval, interval_plot
from mmssl.report.markup import Markup, duration, join, number, tag
from mmssl.report.reading import BASELINES, PICTURES, Run, Score


def names_of(runs: Sequence[Run]) -> list[str]:
    """A short name for each run: its recipe where that tells them apart, else with the end of its directory's name."""
    recipes = [run.recipe for run in runs]
    names = [
        run.recipe if recipes.count(run.recipe) == 1 else f"{run.recipe} {run.path.name.rpartition('-')[2]}"
        for run in runs
    ]
    return [name if names.count(name) == 1 else f"{i + 1}: {name}" for i, name in enumerate(names)]


def parts(runs: Sequence[Run], names: Sequence[str]) -> list[tuple[str, Markup]]:
    """The page's sections: (title, body).

    Args:
        runs: the runs, in the order of their colours.
        names: what to call them.
    """
    return [
        ("Scores", _scores(runs, names)),
        ("Curves", overlays(runs, names)),
        ("Differences", _differences(runs, names)),
        ("Pictures", _pictures(runs, names)),
    ]


def _scores(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    protocols = list(dict.fromkeys(score.protocol for run in runs for score in run.scores))
    cells = [{score.protocol: score for score in run.scores} for run in runs]
    head = ("run", "status", "health", "steps", "wall time", "loss", *protocols)
    rows = [_row(name, run, own, protocols) for name, run, own in zip(names, runs, cells, strict=True)]
    note = "Values with 95 % intervals. Intervals that overlap are no evidence of a difference."
    table = tag(
        "table",
        tag("thead", tag("tr", *(tag("th", name, scope="col") for name in head))),
        tag("tbody", *rows),
    )
    plots = [_plot(protocol, names, [own.get(protocol) for own in cells]) for protocol in protocols]
    none = None if protocols else tag("p", "None of these runs has been scored.", class_="none")
    return join(
        none,
        _same_data(runs),
        tag("div", scores.scrolling(table, "Runs and scores", note), class_="card"),
        _causes(runs, names),
        tag("h3", "Scores and their baselines") if plots else None,
        tag("div", *plots, class_="pair") if plots else None,
    )


def _causes(runs: Sequence[Run], names: Sequence[str]) -> Markup | None:
    """What is wrong with runs that are not healthy, and the remedies."""
    found = [
        (name, run.health.get("verdict"), sections.findings(run.health)) for name, run in zip(names, runs, strict=True)
    ]
    items = [
        tag("li", tag("span", name, class_="mark"), f" ({verdict}): {sections.finding(*pair)}")
        for name, verdict, pairs in found
        for pair in pairs
    ]
    return join(tag("h3", "Health"), tag("ul", *items, class_="words")) if items else None


def _row(name: str, run: Run, own: dict[str, Score], protocols: Sequence[str]) -> Markup:
    train = run.summary.get("train")
    loss = train.get("loss") if isinstance(train, dict) else None
    found = [own.get(protocol) for protocol in protocols]
    return tag(
        "tr",
        tag("th", name, scope="row"),
        tag("td", run.status),
        tag("td", str(run.health.get("verdict") or "unknown")),
        tag("td", number(run.summary.get("steps"))),
        tag("td", duration(run.summary.get("wall_s"))),
        tag("td", number(loss)),
        *(scores.cell(score.value, score.interval) if score else tag("td", "–") for score in found),
    )


def _same_data(runs: Sequence[Run]) -> Markup | None:
    prints = {str(run.data["fingerprint"]) for run in runs if run.data.get("fingerprint")}
    if len(prints) < 2:
        return None
    said = "These runs did not use the same data (their fingerprints differ): compare scores with care."
    return tag("p", said, class_="mark")


def _plot(protocol: str, names: Sequence[str], found: Sequence[Score | None]) -> Markup:
    groups = [
        (name, [Interval("this run", score.value, *(score.interval or (None, None))), *_baselines(score)])
        for name, score in zip(names, found, strict=True)
        if score and score.value is not None
    ]
    metric = next((score.metric for score in found if score), "score")
    drawn = interval_plot(groups, f"{protocol}: {metric} of each run with 95 % intervals", metric, width=420)
    return tag("figure", tag("figcaption", tag("strong", protocol)), drawn, class_="card")


def _baselines(score: Score) -> list[Interval]:
    return scores.baseline_rows({name: score.baselines[name] for name in BASELINES})


def _differences(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    configs = [dict(sections.flatten(run.settings)) for run in runs]
    if not all(configs):
        return tag("p", "Not every run has a readable config.yaml, so the settings cannot be compared.", class_="none")
    every = list(dict.fromkeys(key for config in configs for key in config if not key.startswith(("meta.", "run."))))
    unlike = [key for key in every if len({config.get(key) for config in configs}) > 1]
    if not unlike:
        return tag("p", "The resolved configurations are the same.", class_="none")
    head = tag("tr", *(tag("th", name, scope="col") for name in ("key", *names)))
    values = {key: [tag("td", config.get(key, "–")) for config in configs] for key in unlike}
    rows = [tag("tr", tag("th", key, scope="row"), *cells) for key, cells in values.items()]
    note = f"{len(unlike)} of {len(every)} settings differ; the others are the same in all runs."
    table = tag("table", tag("thead", head), tag("tbody", *rows))
    return tag("div", scores.scrolling(table, "Settings that differ", note), class_="card")


def _pictures(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    kinds = list(dict.fromkeys(picture.name for run in runs for picture in run.pictures))
    kinds.sort(key=lambda kind: PICTURES.index(kind) if kind in PICTURES else len(PICTURES))
    if not kinds:
        return tag("p", "None of these runs has written pictures.", class_="none")
    blocks = []
    for kind in kinds:
        having = [(name, p) for name, run in zip(names, runs, strict=True) for p in run.pictures if p.name == kind]
        cards = [
            tag("figure", tag("figcaption", tag("strong", name)), sections.embed(picture), class_="card picture")
            for name, picture in having
        ]
        blocks.append(join(tag("h3", having[0][1].title), tag("div", *cards, class_="pair")))
    return join(*blocks)


def heading(runs: Sequence[Run]) -> Markup:
    """Title, and where each run lies."""
    named = zip(names_of(runs), runs, strict=True)
    items = [tag("li", f"{name}: ", tag("code", sections.where(run.path))) for name, run in named]
    title = tag("h1", f"{len(runs)} runs")
    return join(tag("p", "mmssl report", class_="kind"), title, tag("ul", *items, class_="words"))
